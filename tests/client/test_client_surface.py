"""What the package shows, and what it may import."""

import ast
import inspect
import pickle
import subprocess
import sys
import tomllib
from pathlib import Path

import cdvft_client
import pytest
from cdvft_client import AsyncClient, Client

PACKAGE = Path(cdvft_client.__file__).parent


def test_exported_members() -> None:
    public = {name for name in vars(cdvft_client) if not name.startswith("_")} | {"__version__"}
    assert public == set(cdvft_client.__all__)
    assert cdvft_client.__all__ == sorted(cdvft_client.__all__)


def test_every_module_is_private_and_the_package_is_typed() -> None:
    assert [path.name for path in PACKAGE.glob("*.py") if not path.name.startswith("_")] == []
    assert (PACKAGE / "py.typed").is_file()


def test_version_is_the_distributions() -> None:
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]
    assert cdvft_client.__version__ == project["version"]


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("*.py")), ids=lambda path: path.name)
def test_imports_only_httpx_and_the_standard_library(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [str(node.module)]
        else:
            continue
        for name in names:
            assert name.split(".")[0] in {"httpx", *sys.stdlib_module_names}


def test_importing_it_loads_no_torch() -> None:
    script = "import sys, cdvft_client; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def _methods(kind: type) -> dict[str, inspect.Signature]:
    members = inspect.getmembers(kind, inspect.isfunction)
    return {name: inspect.signature(member) for name, member in members if not name.startswith("_")}


def test_both_clients_have_the_same_calls() -> None:
    sync, other = _methods(Client), _methods(AsyncClient)
    assert sync.pop("close").parameters.keys() == other.pop("aclose").parameters.keys()
    assert sync.keys() == other.keys()
    for name, signature in sync.items():
        assert signature.parameters == other[name].parameters, name


@pytest.mark.parametrize("name", [n for n in cdvft_client.__all__ if n != "__version__"])
def test_everything_public_says_what_it_is(name: str) -> None:
    found = getattr(cdvft_client, name)
    assert found.__doc__
    if found in (Client, AsyncClient):
        for member in _methods(found):
            assert getattr(found, member).__doc__, member


def test_errors_have_one_base_and_survive_pickling() -> None:
    kinds = [getattr(cdvft_client, name) for name in cdvft_client.__all__ if name.endswith("Error")]
    assert len(kinds) == 17
    assert all(issubclass(kind, cdvft_client.CDVFTError) for kind in kinds)
    error = cdvft_client.NotFoundError("no such adapter", status_code=404, code="model_not_found", request_id="r")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert vars(again) == vars(error)
    assert str(again) == "404 model_not_found: no such adapter (request r)"
