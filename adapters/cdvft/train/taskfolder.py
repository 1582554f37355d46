"""A folder of tasks: one training for each folder in it."""

from pathlib import Path

from cdvft.errors import InvalidData
from cdvft.train.data import SUFFIXES

__all__ = ["find_tasks"]


def find_tasks(folder: Path) -> dict[str, tuple[Path, Path | None]]:
    """The tasks of a folder by name: each a folder with train.* and perhaps valid.*. Raises InvalidData for none."""
    tasks = {}
    for own in sorted(path for path in folder.iterdir() if path.is_dir()):
        train, valid = (_one_of(own, name) for name in ("train", "valid"))
        if train is not None:
            tasks[own.name] = (train, valid)
    if not tasks:
        raise InvalidData(
            f"--data {folder} is a folder without tasks; a task is a folder in it with train{', train'.join(SUFFIXES)}"
        )
    return tasks


def _one_of(folder: Path, name: str) -> Path | None:
    found = [folder / f"{name}{suffix}" for suffix in SUFFIXES if (folder / f"{name}{suffix}").is_file()]
    if len(found) > 1:
        raise InvalidData(f"{folder} has {' and '.join(path.name for path in found)}; keep one of them")
    return found[0] if found else None
