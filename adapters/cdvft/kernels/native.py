"""CDVFT in a packed batch on the CPU: native.c, one pass over the tokens, with the FFTs of the MKL inside torch.

native.c is compiled when the package is installed, where there is a C compiler; torch brings MKL on x86.
"""

import ctypes
import sys
import weakref
from functools import cache, lru_cache
from pathlib import Path

import torch
from torch import Tensor

from cdvft.kernels.compiled import compiled, version_of
from cdvft.methods.base import Tensors
from cdvft.methods.cdvft import CdvftLayout

__all__ = ["NativeAdder", "Plans", "library", "missing", "plans"]

VERSION = 2  # of native.c
PARALLEL = 1 << 13  # elements from which on a helper thread is worth waking: some ten microseconds
HALF = {torch.float32: False, torch.bfloat16: True}

pointer, size, flag = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
DFTI = (
    "DftiCreateDescriptor_s_1d",
    "DftiSetValue",
    "DftiCommitDescriptor",
    "DftiFreeDescriptor",
    "DftiComputeForward",
    "DftiComputeBackward",
)


class _Site(ctypes.Structure):
    """`Site` of native.c."""

    _fields_ = [
        *((name, size) for name in ("d_in", "d_out", "p", "q_in", "q_out")),
        *((name, pointer) for name in ("diag_in", "spectrum", "diag_out", "forward", "inverse")),
    ]


@cache
def library() -> ctypes.CDLL | None:
    """The compiled native.c, bound to torch's MKL; None where `missing` says what is not there."""
    return None if missing() is not None else _bound()


@cache
def missing() -> str | None:
    """What this machine lacks to run native.c."""
    path = _path()
    if path is None:
        return "native.c was not compiled: no C compiler at install"
    if version_of(path) != VERSION:
        return "native.c was compiled for another version: install the package again"
    try:
        found = _torch()
    except OSError:
        return "torch's own library was not found"
    return None if all(hasattr(found, name) for name in DFTI) else "this torch has no MKL"


def _path() -> Path | None:
    return compiled(Path(__file__).parent, "_native")


def _torch() -> ctypes.CDLL:
    """The library in this process that has torch's CPU code; its OpenMP and MKL are native.c's, too."""
    name = {"win32": "torch_cpu.dll", "darwin": "libtorch_cpu.dylib"}.get(sys.platform, "libtorch_cpu.so")
    return ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / name))


def _bound() -> ctypes.CDLL:
    found, dfti = ctypes.CDLL(str(_path())), _torch()
    found.cdvft_bind.argtypes, found.cdvft_bind.restype = [pointer] * len(DFTI), None
    found.cdvft_bind(*(ctypes.cast(getattr(dfti, name), pointer) for name in DFTI))
    found.cdvft_plan.argtypes, found.cdvft_plan.restype = [size, size, flag], pointer
    found.cdvft_free.argtypes, found.cdvft_free.restype = [pointer], None
    tensor = (pointer, size, flag)
    found.cdvft_add.argtypes = [pointer, *tensor, *tensor, pointer, size, flag]
    found.cdvft_add.restype = size
    return found


class Plans:
    """MKL's plans of `count` real FFTs of length p side by side; freed with the last reference."""

    def __init__(self, native: ctypes.CDLL, p: int, count_in: int, count_out: int) -> None:
        """Raises ValueError where MKL has none of that length."""
        self.forward, self.inverse = native.cdvft_plan(p, count_in, 0), native.cdvft_plan(p, count_out, 1)
        made = [plan for plan in (self.forward, self.inverse) if plan is not None]
        for plan in made:
            weakref.finalize(self, native.cdvft_free, plan).atexit = False
        if len(made) < 2:
            raise ValueError(f"MKL has no real FFT of length {p}")


@lru_cache(maxsize=256)
def plans(p: int, q_in: int, q_out: int) -> Plans | None:
    """For a site's blocks; None where MKL has none. Raises RuntimeError without `library`."""
    native = library()
    if native is None:
        raise RuntimeError(f"{missing()}; ask `library` first")
    try:
        return Plans(native, p, q_in, q_out)
    except ValueError:
        return None


class NativeAdder:
    """`y[t] += diag_out * irfft(sum_j S_ij rfft(diag_in x)_j)`, block by block, padded with zeros, by the vectors of
    row rows[t] of one site's tables: `x [T, d_in]`, `y [T, d_out]` in float32 or bfloat16, `rows [T]` int64.

    `tables` are as `Cdvft.prepare` (m = 2) or, without diagonals, `C3a.prepare` makes them, with a leading row axis and
    contiguous. A call raises RuntimeError where MKL refuses or memory is out; False: x, y or rows are not such.
    """

    def __init__(self, tables: Tensors, layout: CdvftLayout) -> None:
        """Raises RuntimeError without `library`, or for a length without `plans`."""
        p, q_in, q_out = layout.p, layout.q_in, tables["spectrum"].shape[-3]
        native, used = library(), plans(p, q_in, q_out)
        if native is None or used is None:
            raise RuntimeError(f"MKL has no real FFT of length {p}; ask `plans` first")
        pointers = [tables[n].data_ptr() if n in tables else None for n in ("diag_in", "spectrum", "diag_out")]
        self._keep = tables, used
        self._site = _Site(layout.d_in, layout.d_out, p, q_in, q_out, *pointers, used.forward, used.inverse)
        self._pointer = ctypes.byref(self._site)
        self._add, self._alone = native.cdvft_add, max(1, PARALLEL // max(layout.d_in, layout.d_out))
        self._trains = any(table.requires_grad for table in tables.values())

    def __call__(self, x: Tensor, y: Tensor, rows: Tensor) -> bool:
        x_half, y_half, x_strides, y_strides = HALF.get(x.dtype), HALF.get(y.dtype), x.stride(), y.stride()
        tokens = len(rows)
        if (
            x_half is None
            or y_half is None
            or rows.dtype is not torch.int64
            or not x_strides[1] == y_strides[1] == rows.stride(0) == 1
            or not (x.is_cpu and y.is_cpu and rows.is_cpu)
            or (torch.is_grad_enabled() and (self._trains or x.requires_grad or y.requires_grad))
        ):
            return tokens == 0
        undone = self._add(
            *(self._pointer, x.data_ptr(), x_strides[0], x_half, y.data_ptr(), y_strides[0], y_half),
            *(rows.data_ptr(), tokens, 1 if tokens < self._alone else torch.get_num_threads()),
        )
        if undone:
            raise RuntimeError(f"MKL refused {undone} FFTs of length {self._site.p}, or there is no memory for them")
        return True
