"""attention.c: a batch's attention on the CPU in one call. Compiled when the package is installed, where there is GCC
or Clang."""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import torch
from cdvft.kernels.compiled import compiled, version_of
from torch import Tensor

from cdvft_server.engine.attention import Piece

__all__ = ["DTYPES", "NativeCall", "library"]

VERSION = 1  # of attention.c
DTYPES = {torch.float32, torch.bfloat16}

pointer, size, flag = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int


class _Tensor(ctypes.Structure):
    _fields_ = [("data", pointer), ("head", size), ("token", size)]


class _Call(ctypes.Structure):
    _fields_ = [
        *((name, _Tensor) for name in ("query", "key", "value", "out")),
        *((name, size) for name in ("heads", "groups", "d")),
        ("scale", ctypes.c_float),
        ("half", flag),
    ]


@cache
def library() -> ctypes.CDLL | None:
    """The compiled attention.c; None where there is none, or one of another version."""
    path = _path()
    if path is None or version_of(path) != VERSION:
        return None
    found = ctypes.CDLL(str(path))
    found.cdvft_attend.argtypes = [ctypes.POINTER(_Call), pointer, size, flag]
    found.cdvft_attend.restype = flag
    return found


def _path() -> Path | None:
    return compiled(Path(__file__).parent, "_attention")


@dataclass(frozen=True, eq=False)
class NativeCall:
    """All pieces and heads in one call, which shares them out among torch's threads; tensors of DTYPES, all of one.
    Raises RuntimeError without `library`, MemoryError where a thread finds no memory for its blocks."""

    pieces: Sequence[Piece]
    groups: int

    @cached_property
    def table(self) -> Tensor:
        """`[pieces, 5]`, as attention.c reads them."""
        return torch.tensor([(p.start, p.stop, p.kv_start, p.kv_stop, p.causal) for p in self.pieces])

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
        native = library()
        if native is None:
            raise RuntimeError("attention.c was not compiled; ask `library` first")
        heads, rows, d = query.shape
        out = query.new_empty(rows, heads, d).transpose(0, 1)
        query, key, value = (t if t.stride(2) == 1 else t.contiguous() for t in (query, key, value))
        call = _Call(
            _Tensor(query.data_ptr(), query.stride(0), query.stride(1)),
            *(_Tensor(t.data_ptr(), t.stride(1), t.stride(0)) for t in (key, value)),
            _Tensor(out.data_ptr(), out.stride(0), out.stride(1)),
            *(heads, self.groups, d),
            *(d**-0.5 if scaling is None else scaling, query.dtype == torch.bfloat16),
        )
        if native.cdvft_attend(call, self.table.data_ptr(), len(self.pieces), torch.get_num_threads()):
            raise MemoryError("no memory for the blocks of an attention call")
        return out
