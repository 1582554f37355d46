"""Who may import what, read from the source: at the top of a file, inside functions and under TYPE_CHECKING alike."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.processes import run_python

ROOT = Path(__file__).parent.parent
SOURCES = {"cdvft": ROOT / "adapters", "cdvft_server": ROOT / "server", "cdvft_client": ROOT / "clients" / "python"}

# what the rules are about; anything else (standard library, progress bars, templates, a regex engine) is free
LARGE = {
    *("torch", "safetensors", "transformers", "peft", "tokenizers", "huggingface_hub"),
    *("fastapi", "starlette", "uvicorn", "asyncio", "sqlalchemy", "alembic", "httpx", "cdvft", "cdvft_client"),
    *(f"cdvft_server.{part}" for part in ("engine", "store", "service", "routes", "app", "cli", "text", "bench")),
}
LIGHT = {f"cdvft.{name}" for name in ("errors", "files", "templates")}  # of the library, without torch
HUGGING_FACE = {"transformers", "peft", "tokenizers", "huggingface_hub"}
LIBRARY_ON_TRANSFORMERS = ("cdvft.backbone", "cdvft.train", "cdvft.tuner")
WEB = {"fastapi", "starlette", "asyncio"}

# the longest matching beginning of a module's name decides; a layer may import itself
ALLOWED: dict[str, set[str]] = {
    "cdvft_client": {"httpx", "asyncio"},
    "cdvft": {"torch", "safetensors"},
    **{name: {"torch", "safetensors", "cdvft"} | HUGGING_FACE for name in LIBRARY_ON_TRANSFORMERS},
    "cdvft.methods.waveft": {"torch", "cdvft", "peft"},  # wavelets' numbers, which PEFT has
    "cdvft_server": WEB | LIGHT | {"cdvft_server.service"},
    "cdvft_server.routes": WEB | {"cdvft_server.service"},
    "cdvft_server.app": WEB | {"cdvft_server.service", "cdvft_server.routes"},
    "cdvft_server.schemas": WEB | {"cdvft_server.service"},
    "cdvft_server.engine": {"cdvft", "torch", "transformers"},
    "cdvft_server.store": {"cdvft", "sqlalchemy", "alembic"},
    "cdvft_server.migrations": {"sqlalchemy", "alembic", "cdvft_server.store"},
    "cdvft_server.text": {"cdvft"},
    "cdvft_server.service": {"asyncio", "cdvft", "torch", *(f"cdvft_server.{p}" for p in ("engine", "store", "text"))},
    "cdvft_server.cli": LARGE,
    "cdvft_server.bench": LARGE,
    "cdvft_server.connections": WEB | {"uvicorn"},
    "cdvft_server.serving": LARGE,  # the process: uvicorn around the app, for the command line
}


def module_name(file: Path, root: Path) -> str:
    parts = file.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def inside(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def longest(name: str, packages) -> str | None:
    return max((package for package in packages if inside(name, package)), key=len, default=None)


def imports(source: str, module: str, is_package: bool) -> Iterator[tuple[int, str]]:
    """(line, imported name) of every import statement; `from a import b` gives a.b, which may be a module."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = module.split(".")[: len(module.split(".")) - node.level + is_package] if node.level else []
            start = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{start}.{alias.name}") for alias in node.names)


def violations(module: str, source: str, is_package: bool = False) -> list[str]:
    layer = longest(module, ALLOWED)
    assert layer is not None, f"{module} is in no layer of ALLOWED"
    wrong = []
    for line, name in imports(source, module, is_package):
        heavy = inside(name, "cdvft") and longest(name, LIBRARY_ON_TRANSFORMERS)
        target = longest(name, LARGE | LIGHT)
        if layer == "cdvft" and heavy:
            wrong.append(f"{module}:{line} imports {heavy}, which imports transformers")
        elif target and not longest(target, ALLOWED[layer] | ({layer} - {"cdvft_server"})):
            wrong.append(f"{module}:{line} ({layer}) imports {target}")
    return wrong


def files() -> list[tuple[str, Path]]:
    found = []
    for package, root in SOURCES.items():
        found += [(module_name(file, root), file) for file in sorted((root / package).rglob("*.py"))]
    return found


@pytest.mark.parametrize(("module", "file"), files(), ids=lambda value: value if isinstance(value, str) else "")
def test_imports_point_the_right_way(module: str, file: Path) -> None:
    assert violations(module, file.read_text(), file.name == "__init__.py") == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("cdvft_client._client", "import torch"),
        ("cdvft_client._client", "from cdvft.files import AdapterFiles"),
        ("cdvft.checkpoint", "def f():\n    import transformers"),
        ("cdvft.checkpoint", "from cdvft.backbone import load_backbone"),
        ("cdvft.methods.cdvft", "from .. import backbone"),
        ("cdvft.checkpoint", "from cdvft import train"),
        ("cdvft.checkpoint", "import cdvft_server.engine"),
        ("cdvft_server.engine.core", "import asyncio"),
        ("cdvft_server.engine.core", "from fastapi import FastAPI"),
        ("cdvft_server.engine.core", "from cdvft_server.service import Service"),
        ("cdvft_server.engine.core", "from ..store import Store"),
        ("cdvft_server.store.rows", "import torch"),
        ("cdvft_server.store.rows", "import cdvft_server.engine"),
        ("cdvft_server.service.calls", "from fastapi import Request"),
        ("cdvft_server.service.calls", "from sqlalchemy import select"),
        ("cdvft_server.routes.models", "def f():\n    import torch.nn"),
        ("cdvft_server.routes.models", "from cdvft_server.store import Store"),
        ("cdvft_server.schemas", "from cdvft.prepared import prepare_adapter"),
        ("cdvft_server.naming", "import torch"),
        ("cdvft_server.naming", "from cdvft.checkpoint import read_adapter"),
        ("cdvft_server.naming", "from cdvft_server import engine"),
    ],
)
def test_a_wrong_import_is_seen(module: str, source: str) -> None:
    assert violations(module, source)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("cdvft.checkpoint", "import torch.nn\nfrom cdvft.files import AdapterFiles\nimport re2, jinja2"),
        ("cdvft.train.run", "import transformers\nfrom cdvft.backbone import load_backbone\nimport tqdm"),
        ("cdvft_server.engine.core", "from cdvft.backbone import Backbone\nfrom . import batch\nimport torch"),
        ("cdvft_server.service.calls", "from cdvft_server import engine, store, errors"),
        ("cdvft_server.routes.models", "from fastapi import APIRouter\nfrom cdvft_server.errors import ApiError"),
    ],
)
def test_a_right_import_is_not(module: str, source: str) -> None:
    assert violations(module, source) == []


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import cdvft, cdvft.errors, cdvft.templates, cdvft.files", ["torch", "transformers"]),
        ("import cdvft.checkpoint, cdvft.prepared, cdvft.selftest, cdvft.merge, cdvft.accounting", ["transformers"]),
        ("import cdvft_client", ["torch", "transformers", "cdvft", "fastapi"]),
        ("import cdvft_server.engine", ["fastapi", "sqlalchemy"]),
        ("import cdvft_server.store", ["transformers", "fastapi"]),
    ],
)
def test_and_it_is_so_when_it_runs(statement: str, absent: list[str]) -> None:
    code = f"{statement}\nimport sys\nprint([name for name in {absent!r} if name in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=120)
    assert shown.stdout.strip() == "[]"


def test_triton_is_not_needed() -> None:
    code = "import sys; sys.modules['triton'] = None; import cdvft.methods, cdvft_server.engine; print('fine')"
    assert run_python("-c", code).strip() == "fine"
