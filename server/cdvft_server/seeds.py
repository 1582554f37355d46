"""The folders that `--adapters` names. Loads nothing of them."""

from collections.abc import Iterable
from pathlib import Path

from cdvft.files import CONFIG_NAME

from cdvft_server.errors import StartRefused

__all__ = ["adapter_folders"]


def adapter_folders(folders: Iterable[Path]) -> list[Path]:
    """Each folder that is an adapter, or the adapters in it. Raises StartRefused."""
    found: list[Path] = []
    for folder in folders:
        if not folder.is_dir():
            raise StartRefused(f"--adapters {folder}: no such folder")
        inside = sorted(path.parent for path in folder.glob(f"*/{CONFIG_NAME}"))
        own = [folder] if (folder / CONFIG_NAME).is_file() else inside
        if not own:
            raise StartRefused(f"--adapters {folder}: neither it nor a folder in it has an {CONFIG_NAME}")
        found += [path.resolve() for path in own]
    return found
