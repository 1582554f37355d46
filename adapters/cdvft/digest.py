"""An adapter's name by content: one sha256 over everything that its answers depend on."""

import ctypes
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from types import NoneType
from typing import Any

from torch import Tensor

from cdvft.adapter import AdapterSpec
from cdvft.site import Site

__all__ = ["adapter_digest", "tensor_hash"]

FORMAT = 1
PLAIN = (str, int, float, NoneType)  # what `asdict` would copy as it is


def adapter_digest(
    spec: AdapterSpec,
    tensors: Mapping[str, Mapping[str, Tensor]],
    head: Mapping[str, Tensor],
    frozen: Mapping[str, Tensor] | None = None,
) -> str:
    """ "sha256:<64 hex>" over canonical JSON of the spec and of every tensor's name, dtype, shape and bytes' sha256.

    Tensors are hashed as they are served (fp32): the same numbers stored as F16 and as F32 are the same adapter.
    Not in it: the adapter's name, description, dropout, paths, tensor order, safetensors metadata, the base.
    """
    sites = sorted(spec.sites)
    content: dict[str, Any] = {
        "format": FORMAT,
        "method": spec.method,
        "task": spec.task,
        "sites": [[site.name, site.d_in, site.d_out, _options(spec, site)] for site in sites],
        "head": None if spec.head is None else asdict(spec.head),
        "labels": None if spec.labels is None else list(spec.labels),
        "max_length": spec.max_length,
        "template": spec.template,
        "tensors": sorted(_row(f"{site}/{name}", t) for site, own in tensors.items() for name, t in own.items()),
        "head_tensors": sorted(_row(name, t) for name, t in head.items()),
    }
    if frozen:  # methods without have the digests that they had before there were methods with
        content["frozen_tensors"] = sorted(_row(name, t) for name, t in frozen.items())
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def _options(spec: AdapterSpec, site: Site) -> dict[str, Any]:
    options = spec.sites[site]
    if not is_dataclass(options) or isinstance(options, type):
        raise TypeError(f"a method's site spec must be a dataclass, not {type(options).__name__}")
    values = {name: getattr(options, name) for name in options.__dataclass_fields__}
    return values if all(isinstance(value, PLAIN) for value in values.values()) else asdict(options)


def tensor_hash(tensor: Tensor) -> str:
    """sha256 of a tensor's bytes, 64 hex digits."""
    return hashlib.sha256(_raw(tensor.detach().to("cpu").contiguous())).hexdigest()


def _row(name: str, tensor: Tensor) -> list[Any]:
    dtype = str(tensor.dtype).removeprefix("torch.")
    return [name, dtype, list(tensor.shape), tensor_hash(tensor)]


def _raw(tensor: Tensor) -> bytes:
    if tensor.numel() == 0:
        return b""
    size = tensor.numel() * tensor.element_size()
    return ctypes.string_at(tensor.data_ptr(), size)
