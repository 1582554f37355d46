"""CDVFT in a packed batch on the CPU: native.c, one pass over the tokens, with the FFTs of the MKL inside torch.

native.c is compiled when the package is installed, where there is a C compiler; torch brings MKL on x86.
"""

import ctypes
import sys
import weakref
from functools import cache, lru_cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import torch
from torch import Tensor

from cdvft.methods.base import Tensors
from cdvft.methods.cdvft import CdvftLayout

__all__ = ["Plans", "add_native", "library", "missing", "plans"]

PARALLEL = 1 << 15  # elements from which on a helper thread is worth waking, as torch has it
LINE = 16  # floats of a cache line: no two threads write to one

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
    if not hasattr(ctypes.CDLL(str(path)), "cdvft_bind"):
        return "native.c was compiled for another version: install the package again"
    try:
        found = _torch()
    except OSError:
        return "torch's own library was not found"
    return None if all(hasattr(found, name) for name in DFTI) else "this torch has no MKL"


def _path() -> Path | None:
    found = (Path(__file__).with_name("_native" + suffix) for suffix in EXTENSION_SUFFIXES)
    return next((path for path in found if path.is_file()), None)


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
    found.cdvft_add.argtypes = [pointer, *tensor, *tensor, pointer, size, pointer, size, flag]
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


def add_native(x: Tensor, y: Tensor, rows: Tensor, tables: Tensors, layout: CdvftLayout) -> None:
    """`y[t] += dW[rows[t]] x[t]` in place for m = 2 factors: `x [T, d_in]`, `y [T, d_out]` in float32 or bfloat16,
    `rows [T]` int64; `tables` as `Cdvft.prepare` makes them, with a leading row axis.

    diag_out * irfft(sum_j S_ij rfft(diag_in x)_j), block by block, padded with zeros. Rows must exist: nothing checks
    them. Raises RuntimeError without `library`, or where MKL refuses.
    """
    p, q_in, q_out = layout.p, layout.q_in, tables["spectrum"].shape[-3]
    used = plans(p, q_in, q_out)
    native = library()
    if native is None or used is None:
        raise RuntimeError(f"MKL has no real FFT of length {p}; ask `plans` first")
    site = _Site(
        *(layout.d_in, layout.d_out, p, q_in, q_out),
        *(tables[name].data_ptr() for name in ("diag_in", "spectrum", "diag_out")),
        *(used.forward, used.inverse),
    )
    tokens, half = len(x), torch.bfloat16
    threads = torch.get_num_threads() if tokens * max(layout.d_in, layout.d_out) >= PARALLEL else 1
    room = (max(q_in, q_out) * p + 2 * (q_in + q_out) * (p // 2 + 1)) // LINE * LINE + 2 * LINE
    work = torch.empty(threads * room)
    refused = native.cdvft_add(
        ctypes.byref(site),
        *(x.data_ptr(), x.stride(0), x.dtype == half, y.data_ptr(), y.stride(0), y.dtype == half),
        *(rows.data_ptr(), tokens, work.data_ptr(), room, threads),
    )
    if refused:
        raise RuntimeError(f"MKL refused {refused} FFTs of length {p}")
