"""Libraries that were compiled when the package was installed: where they lie, and which version they are."""

import ctypes
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

__all__ = ["compiled", "version_of"]


def compiled(folder: Path, name: str) -> Path | None:
    """The file of that name with one of this Python's endings; None where it was not compiled."""
    found = (folder / (name + suffix) for suffix in EXTENSION_SUFFIXES)
    return next((path for path in found if path.is_file()), None)


def version_of(path: Path) -> int:
    """The number that its C file calls `cdvft_version`, which changes with the calls it takes: one that was compiled
    from an older file must not be called. 0 where it says none."""
    try:
        return ctypes.c_int.in_dll(ctypes.CDLL(str(path)), "cdvft_version").value
    except ValueError:
        return 0
