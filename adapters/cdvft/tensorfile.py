"""Safetensors bytes to fp32 tensors and back, with the header checked before anything is read by it."""

import json
import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from cdvft.errors import InvalidAdapter, TooLarge
from cdvft.files import WEIGHTS_NAME
from cdvft.strictjson import parse_object

__all__ = ["MAX_HEADER_BYTES", "read_tensors", "tensor_names", "write_tensors"]

MAX_HEADER_BYTES = 1 << 20
MAX_NAME = 512  # characters
COMMON_BYTES = 1 << 16
DTYPE_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4}


def read_tensors(data: bytes, max_header_bytes: int = MAX_HEADER_BYTES, file: str = WEIGHTS_NAME) -> dict[str, Tensor]:
    """Name -> fp32 tensor, int64 for I32 and I64. Raises InvalidAdapter naming what is wrong, TooLarge for a header
    beyond the limit."""
    _check_header(data, max_header_bytes, file)
    try:
        tensors = safetensors.torch.load(data)
    except (safetensors.SafetensorError, ValueError, RuntimeError, KeyError) as error:
        raise InvalidAdapter(f"{file} cannot be read: {error}") from None
    return {name: t.to(torch.float32 if t.is_floating_point() else torch.int64) for name, t in tensors.items()}


def tensor_names(data: bytes) -> set[str]:
    """Of a file that `read_tensors` accepted."""
    header: dict[str, Any] = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return header.keys() - {"__metadata__"}


def write_tensors(tensors: Mapping[str, Tensor]) -> bytes:
    """Safetensors bytes; the same for the same tensors whatever their order."""
    contiguous = {name: tensors[name].contiguous() for name in sorted(tensors)}
    data: bytes = safetensors.torch.save(contiguous, metadata={"format": "pt"})
    return data


def _check_header(data: bytes, limit: int, file: str) -> None:
    header_begins = data[8:9] == b"{"  # a header's length may begin with the same bytes as a pickle
    if data[:4] == b"PK\x03\x04" or (data[:1] == b"\x80" and data[1:2] in b"\x02\x03\x04\x05" and not header_begins):
        raise InvalidAdapter(f"{file} is a pickle, which is never loaded; save with safe_serialization=True")
    if len(data) < 8:
        raise InvalidAdapter(f"{file} is {'empty' if not data else 'truncated'} ({len(data)} bytes)")
    length = int.from_bytes(data[:8], "little")
    if length > limit:
        raise TooLarge(f"{file}: the header says it is {length} bytes long, at most {limit} are accepted")
    if 8 + length > len(data):
        raise InvalidAdapter(f"{file} is truncated: a header of {length} bytes in a file of {len(data)}")
    header = data[8 : 8 + length]
    (_check_common_layout if length <= COMMON_BYTES else _check_layout)(header, len(data) - 8 - length, file)


def _check_layout(data: bytes, available: int, file: str) -> None:
    """A header's own contents, and that its tensors fill the `available` bytes behind it without overlap or gap."""
    header = parse_object(data, f"{file}: the header")
    metadata = header.pop("__metadata__", None)
    if metadata is not None and not _is_text_map(metadata):
        raise InvalidAdapter(f"{file}: __metadata__ must map strings to strings")
    if not header:
        raise InvalidAdapter(f"{file} has no tensors")
    spans = sorted((*_span(name, entry, file), name) for name, entry in header.items())
    position = 0
    for start, stop, name in spans:
        if stop > available:
            raise InvalidAdapter(f"{file}: {name} ends at byte {stop}, the file holds {available}: truncated?")
        if start != position:
            raise InvalidAdapter(f"{file}: {name} starts at byte {start}, not at {position}: overlap or gap")
        position = stop
    if position != available:
        raise InvalidAdapter(f"{file} has {available - position} bytes that belong to no tensor")


_check_common_layout = lru_cache(maxsize=64)(_check_layout)  # a fleet's headers are alike; what is refused is not kept


def _span(name: str, entry: Any, file: str) -> tuple[int, int]:
    """One tensor's byte span, its size checked against dtype and shape."""
    where = f"{file}: {name[:200]}"
    if len(name) > MAX_NAME:
        raise InvalidAdapter(f"{where}... is a name of {len(name)} characters, at most {MAX_NAME} are accepted")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise InvalidAdapter(f"{where} must have exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise InvalidAdapter(f"{where} has dtype {dtype!r}; accepted: {', '.join(DTYPE_BYTES)}")
    if not _are_sizes(shape) or len(shape) > 8:
        raise InvalidAdapter(f"{where} has the shape {shape!r}; a list of sizes is needed")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise InvalidAdapter(f"{where} has data_offsets {offsets!r}; [start, stop] is needed")
    expected = math.prod(shape) * DTYPE_BYTES[dtype]
    if expected == 0:
        raise InvalidAdapter(f"{where} is empty (shape {shape})")
    if offsets[1] - offsets[0] != expected:
        raise InvalidAdapter(f"{where} is {dtype} {shape}, {expected} bytes, but spans {offsets[1] - offsets[0]}")
    return offsets[0], offsets[1]


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(v) is int and 0 <= v < 1 << 48 for v in value)


def _is_text_map(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(v, str) for v in value.values())
