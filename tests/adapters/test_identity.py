"""Base identity: moved by any tensor's byte, type or name and any architecture field; cached by file size and time."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from cdvft import identity
from cdvft.errors import UnsupportedBase
from cdvft.identity import ARCHITECTURE_FIELDS, base_digest, checkpoint_tensors
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel

from tests.tiny import tiny_bert


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_bert(tmp_path / "base", seed=1)


def digest(folder: Path, cache: Path | None = None, **changes) -> str:
    return base_digest(folder, AutoConfig.from_pretrained(folder).to_dict() | changes, cache)


def rewrite(folder: Path, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_the_same_base_elsewhere_has_the_same_digest(folder: Path, tmp_path: Path) -> None:
    first = digest(folder)
    assert first.startswith("sha256:")
    assert len(first) == 7 + 64
    copied = shutil.copytree(folder, tmp_path / "copy" / "other-name")
    (copied / "model.safetensors").rename(copied / "weights.safetensors")
    os.utime(copied / "weights.safetensors", ns=(1, 1))
    assert digest(copied) == first
    sharded = tmp_path / "sharded"
    AutoModel.from_pretrained(folder).save_pretrained(sharded, max_shard_size="20KB")
    assert len(list(sharded.glob("*.safetensors"))) > 1
    assert digest(sharded) == first
    rewrite(folder, lambda tensors: None)  # other metadata, same tensors
    assert digest(folder) == first


def test_every_tensor_counts(folder: Path) -> None:
    name = "encoder.layer.1.attention.self.query.weight"
    seen = [digest(folder)]

    def flip_a_bit(tensors) -> None:
        tensors[name].view(torch.int32)[3, 5] ^= 1

    def retype(tensors) -> None:
        tensors[name] = tensors[name].view(torch.int32)

    def reshape(tensors) -> None:
        tensors[name] = tensors[name].reshape(16, 64)

    for change in (
        flip_a_bit,
        retype,
        reshape,
        lambda tensors: tensors.update({"more": torch.ones(1)}),
        lambda tensors: tensors.pop("more"),
        lambda tensors: tensors.update({"other": tensors.pop(name)}),
    ):
        rewrite(folder, change)
        seen.append(digest(folder))
    assert seen[5] == seen[3]  # what was added is gone again
    assert len(set(seen)) == len(seen) - 1


def test_every_architecture_field_counts_and_no_other(folder: Path) -> None:
    plain = digest(folder)
    assert {digest(folder, **{field: "changed"}) for field in ARCHITECTURE_FIELDS} - {plain} != set()
    assert len({digest(folder, **{field: "changed"}) for field in ARCHITECTURE_FIELDS}) == len(ARCHITECTURE_FIELDS)
    assert digest(folder, transformers_version="9.9", _name_or_path="/x", torch_dtype="bfloat16") == plain


def test_the_cache_spares_the_hashing_until_the_file_changes(folder: Path, tmp_path: Path, monkeypatch) -> None:
    hashed: list[Path] = []
    original = identity._hash_tensors

    def counted(file: Path) -> list[list[str]]:
        hashed.append(file)
        return original(file)

    monkeypatch.setattr(identity, "_hash_tensors", counted)
    cache = tmp_path / "new" / "folder" / "digests.json"
    first = digest(folder, cache)
    assert digest(folder, cache) == first
    assert len(hashed) == 1
    file = folder / "model.safetensors"
    stamp = file.stat().st_mtime_ns
    rewrite(folder, lambda tensors: tensors["pooler.dense.bias"].add_(1.0))
    os.utime(file, ns=(stamp + 1, stamp + 1))  # the same size, one nanosecond later
    second = digest(folder, cache)
    assert second != first
    assert second == digest(folder)
    assert len(hashed) == 3
    for damage in ("{", "[1]", json.dumps({"x": 1})):
        cache.write_text(damage)
        assert digest(folder, cache) == second
    assert json.loads(cache.read_text())  # and is whole again


def test_a_cache_that_cannot_be_written_costs_only_time(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert digest(folder, tmp_path / "file" / "digests.json") == digest(folder)


def test_what_is_not_a_whole_checkpoint_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedBase, match=r"has no \*.safetensors file; save the model with save_pretrained"):
        base_digest(tmp_path, {})
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(UnsupportedBase, match="is truncated"):
        digest(folder)


def test_tensor_names(folder: Path) -> None:
    names = checkpoint_tensors(folder)
    assert "encoder.layer.0.attention.self.query.weight" in names
    assert "pooler.dense.weight" in names
