"""Where a library lies that was compiled when the package was installed."""

from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

__all__ = ["compiled"]


def compiled(folder: Path, name: str) -> Path | None:
    """The file of that name with one of this Python's endings; None where it was not compiled."""
    found = (folder / (name + suffix) for suffix in EXTENSION_SUFFIXES)
    return next((path for path in found if path.is_file()), None)
