"""What a base's folder says before anything of it is loaded. Imports no torch."""

import json
from pathlib import Path

from cdvft.errors import UnsupportedBase
from cdvft.family import Family, family_of

__all__ = ["family_at", "local_folder"]


def local_folder(base: str) -> Path | None:
    """The model folder that `--base` names; None for what may be a Hub id. Raises UnsupportedBase for neither."""
    folder = Path(base).expanduser()
    if (folder / "config.json").is_file():
        return folder.resolve()
    if folder.exists() or base.startswith((".", "/", "~")):
        raise UnsupportedBase(f"--base {base}: no config.json there; give a model folder or a Hub id")
    if base.count("/") > 1 or "\\" in base:
        raise UnsupportedBase(f"--base {base}: no such folder")
    return None


def family_at(folder: Path) -> Family:
    """By the config's `model_type`. Raises UnsupportedBase."""
    try:
        model_type = json.loads((folder / "config.json").read_bytes()).get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise UnsupportedBase(f"{folder} cannot be loaded: {type(error).__name__}: {error}") from error
    return family_of(model_type)
