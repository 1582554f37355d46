"""What an upload is made of: a PEFT folder, its two files, or an archive, read whole into memory."""

import io
import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PathLike = str | os.PathLike[str]
Files = Mapping[str, tuple[str, bytes, str]]  # form part -> file name, content, content type

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
OPTIONAL = ("chat_template.jinja", "frozen.safetensors")
EITHER = "give exactly one of: a folder or archive as path, config= and weights=, or archive="


def read_upload(
    path: PathLike | None,
    name: str | None,
    config: Mapping[str, Any] | PathLike | bytes | None,
    weights: PathLike | bytes | None,
    archive: PathLike | bytes | None,
) -> tuple[str, Files]:
    """The adapter's name and the form's files.

    Raises ValueError unless exactly one form is given, or if a name is needed; FileNotFoundError for what
    does not exist and for a folder without its files.
    """
    files_given = config is not None or weights is not None
    if (path is not None) + files_given + (archive is not None) != 1:
        raise ValueError(EITHER)
    if files_given:
        if config is None or weights is None:
            raise ValueError(f"config= and weights= go together; {EITHER}")
        return _named(name), _pair(_config(config), _content(weights))
    if path is not None and Path(path).is_dir():
        return name or Path(path).resolve().name, _folder(Path(path))
    source = archive if path is None else path
    if not isinstance(source, bytes) and Path(source or "").suffix in (".safetensors", ".bin", ".json"):
        raise ValueError(f"{source} is one file of an adapter; give its folder, or config= and weights=")
    if not isinstance(source, bytes) and not Path(source or "").exists():
        raise FileNotFoundError(f"{source} does not exist; give a PEFT folder, a zip or a tar.gz")
    return _named(name), _archive(_content(source or b""))


def write_whole(path: PathLike, content: bytes) -> None:
    """Writes `content` to `path` at once: what was there stays until all of it is on disk."""
    target = Path(path)
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        part.write_bytes(content)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def _named(name: str | None) -> str:
    if not name:
        raise ValueError("name= is needed: only a folder has a name of its own")
    return name


def _folder(folder: Path) -> Files:
    for needed in (CONFIG, WEIGHTS):
        if not (folder / needed).is_file():
            raise FileNotFoundError(f"{folder} has no {needed}; a PEFT folder has {CONFIG} and {WEIGHTS}")
    optional = [name for name in OPTIONAL if (folder / name).is_file()]
    if not optional:
        return _pair((folder / CONFIG).read_bytes(), (folder / WEIGHTS).read_bytes())
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for member in (CONFIG, WEIGHTS, *optional):
            archive.writestr(zipfile.ZipInfo(member), (folder / member).read_bytes())
    return _archive(packed.getvalue())


def _pair(config: bytes, weights: bytes) -> Files:
    return {
        "config": (CONFIG, config, "application/json"),
        "weights": (WEIGHTS, weights, "application/octet-stream"),
    }


def _archive(content: bytes) -> Files:
    if content.startswith(b"\x1f\x8b"):
        return {"archive": ("adapter.tar.gz", content, "application/gzip")}
    return {"archive": ("adapter.zip", content, "application/zip")}


def _config(config: Mapping[str, Any] | PathLike | bytes) -> bytes:
    return json.dumps(dict(config)).encode() if isinstance(config, Mapping) else _content(config)


def _content(source: PathLike | bytes) -> bytes:
    return source if isinstance(source, bytes) else Path(source).read_bytes()
