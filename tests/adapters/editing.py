"""Changing one thing in an adapter's files."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import safetensors.torch
from cdvft.files import AdapterFiles
from torch import Tensor

REMOVED = object()


def with_config(files: AdapterFiles, **changes: Any) -> AdapterFiles:
    """Set keys of adapter_config.json; `REMOVED` takes one out."""
    config = json.loads(files.config) | changes
    kept = {key: value for key, value in config.items() if value is not REMOVED}
    return replace(files, config=json.dumps(kept).encode())


def with_tensors(files: AdapterFiles, change: Callable[[dict[str, Tensor]], object]) -> AdapterFiles:
    """Let `change` edit the dictionary of tensors in place."""
    tensors = safetensors.torch.load(files.weights)
    change(tensors)
    return replace(files, weights=safetensors.torch.save(tensors))


def renamed(files: AdapterFiles, old: str, new: str) -> AdapterFiles:
    """Replace a part of every tensor name."""
    tensors = safetensors.torch.load(files.weights)
    return replace(files, weights=safetensors.torch.save({k.replace(old, new): v for k, v in tensors.items()}))
