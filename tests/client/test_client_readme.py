"""The README's examples name every call and every error, and are correctly typed Python."""

import inspect
import re
from pathlib import Path

import cdvft_client
import pytest
from mypy import api

README = Path(cdvft_client.__file__).parent.parent / "README.md"


def examples() -> str:
    """All of the README's Python, in order: one program."""
    return "\n".join(re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL))


@pytest.mark.parametrize("name", [n for n in vars(cdvft_client.Client) if not n.startswith("_") and n != "base_url"])
def test_every_call_has_an_example(name: str) -> None:
    assert inspect.isfunction(getattr(cdvft_client.Client, name))
    assert f"client.{name}(" in examples()


@pytest.mark.parametrize("name", [n for n in cdvft_client.__all__ if n.endswith("Error")])
def test_every_error_is_named(name: str) -> None:
    assert f"`{name}`" in README.read_text()


@pytest.mark.parametrize("name", list(cdvft_client.StreamFields.__annotations__))
def test_every_keyword_is_named(name: str) -> None:
    assert f"`{name}`" in README.read_text()


def test_the_examples_are_correctly_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MYPYPATH", str(README.parent))
    program = tmp_path / "examples.py"
    program.write_text(examples())
    options = ["--strict", "--python-version=3.11", f"--cache-dir={tmp_path / 'cache'}", "--config-file="]
    output, problems, status = api.run([*options, str(program)])
    assert (problems, status) == ("", 0), output
