"""Base identity: one digest over what makes a base that base, so that an adapter can name the one it was trained on."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open

from cdvft.errors import UnsupportedBase

__all__ = ["ARCHITECTURE_FIELDS", "base_digest", "checkpoint_files", "checkpoint_tensors", "digest_cache"]

ARCHITECTURE_FIELDS = (
    "model_type hidden_size num_hidden_layers num_attention_heads num_key_value_heads head_dim intermediate_size "
    "hidden_act vocab_size max_position_embeddings type_vocab_size pad_token_id layer_norm_eps rms_norm_eps "
    "rope_parameters attention_bias mlp_bias tie_word_embeddings sliding_window position_embedding_type is_decoder"
).split()


def checkpoint_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint folder, sorted. Raises UnsupportedBase where there are none."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UnsupportedBase(f"{folder} has no *.safetensors file; save the model with save_pretrained(...)")
    return files


def checkpoint_tensors(folder: Path) -> set[str]:
    """The names of all tensors in the checkpoint."""
    names: set[str] = set()
    for file in checkpoint_files(folder):
        with safe_open(file, framework="pt") as tensors:
            names.update(tensors.keys())
    return names


def base_digest(folder: Path, architecture: Mapping[str, Any], cache: Path | None = None) -> str:
    """ "sha256:<hex>" over the architecture fields and every checkpoint tensor (name, dtype, shape, bytes).

    `cache` is a JSON file that remembers each file's tensor hashes by path, size and modification time (ns).
    """
    fields = {key: architecture.get(key) for key in ARCHITECTURE_FIELDS}
    rows = sorted(row for file in checkpoint_files(folder) for row in _file_rows(file, cache))
    text = json.dumps([fields, rows], sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def digest_cache() -> Path:
    """Where the tensor hashes of a user's checkpoints are remembered."""
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(home) / "cdvft" / "base_digests.json"


def _file_rows(file: Path, cache: Path | None) -> list[list[str]]:
    stat = file.stat()
    key = f"{file.resolve()}:{stat.st_size}:{stat.st_mtime_ns}"
    known = _read_cache(cache)
    if key not in known:
        known[key] = _hash_tensors(file)
        _write_cache(cache, known)
    return known[key]


def _hash_tensors(file: Path) -> list[list[str]]:
    """[name, dtype, shape, sha256 of the bytes] per tensor, straight from the file: no copy of it in memory."""
    with file.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(size))
        rows = []
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            start, stop = entry["data_offsets"]
            stream.seek(8 + size + start)
            rows.append([name, entry["dtype"], json.dumps(entry["shape"]), _sha256(stream, stop - start)])
        return rows


def _sha256(stream: Any, length: int) -> str:
    digest = hashlib.sha256()
    while length:
        block = stream.read(min(length, 1 << 22))
        if not block:
            raise UnsupportedBase(f"{stream.name} is truncated; copy the checkpoint again")
        digest.update(block)
        length -= len(block)
    return digest.hexdigest()


def _read_cache(cache: Path | None) -> dict[str, list[list[str]]]:
    try:
        known = json.loads(cache.read_text()) if cache else {}
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _write_cache(cache: Path | None, known: Mapping[str, Any]) -> None:
    if cache is None:
        return
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        temporary = cache.with_name(f"{cache.name}.{os.getpid()}")
        temporary.write_text(json.dumps(known))
        temporary.replace(cache)
    except OSError:
        return  # a read-only home only costs the next start its hashing
