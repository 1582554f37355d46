"""CDVFT in a packed batch on the CPU: torch's FFTs, and native.c for what stands around them.

native.c is compiled when the package is installed, where there is a C compiler; `library` is None without it.
"""

import ctypes
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import torch
from torch import Tensor

from cdvft.methods.base import Tensors
from cdvft.methods.cdvft import CdvftLayout

__all__ = ["add_native", "library"]

ELEMENTS = 384 * 1024  # of a site's wider side at once: what stands between the FFTs stays in the cache
PARALLEL = 1 << 15  # elements from which on a helper thread is worth waking, as torch has it

pointer, size, flag = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
SIGNATURES = {
    "cdvft_scale": (pointer, size, flag, pointer, pointer, pointer, size, size, size, flag),
    "cdvft_multiply": (pointer, pointer, pointer, pointer, size, size, size, size, flag),
    "cdvft_add": (pointer, size, flag, pointer, size, pointer, pointer, size, size, flag),
}


@cache
def library() -> ctypes.CDLL | None:
    """The compiled native.c; torch must have been imported, whose OpenMP it shares."""
    for suffix in EXTENSION_SUFFIXES:
        path = Path(__file__).with_name("_native" + suffix)
        if path.is_file():
            found = ctypes.CDLL(str(path))
            for name, types in SIGNATURES.items():
                function = getattr(found, name)
                function.argtypes, function.restype = types, None
            return found
    return None


def add_native(x: Tensor, y: Tensor, rows: Tensor, tables: Tensors, layout: CdvftLayout) -> None:
    """`y[t] += dW[rows[t]] x[t]` in place for m = 2 factors: `x [T, d_in]`, `y [T, d_out]` in float32 or bfloat16,
    `rows [T]` int64; `tables` as `Cdvft.prepare` makes them, with a leading row axis.

    diag_out * irfft(sum_j S_ij rfft(diag_in x)_j), block by block, padded with zeros. Rows must exist: nothing checks
    them. Raises RuntimeError without `library`.
    """
    chunk = max(1, ELEMENTS // max(layout.d_in, layout.d_out))
    for start in range(0, len(x), chunk):
        stop = start + chunk
        _add(x[start:stop], y[start:stop], rows[start:stop], tables, layout)


def _add(x: Tensor, y: Tensor, rows: Tensor, tables: Tensors, layout: CdvftLayout) -> None:
    native = library()
    if native is None:
        raise RuntimeError("native.c was not compiled; ask `library` first")
    p, q_in, q_out = layout.p, layout.q_in, tables["spectrum"].shape[-3]
    tokens, bins = len(x), p // 2 + 1
    threads = torch.get_num_threads() if tokens * max(layout.d_in, layout.d_out) >= PARALLEL else 1
    at, half = rows.data_ptr(), torch.bfloat16
    scaled = torch.empty(tokens, q_in, p)
    native.cdvft_scale(
        *(x.data_ptr(), x.stride(0), x.dtype == half, tables["diag_in"].data_ptr(), at, scaled.data_ptr()),
        *(tokens, layout.d_in, q_in * p, threads),
    )
    spectrum = torch.fft.rfft(scaled)  # [T, q_in, bins]
    mixed = torch.empty(tokens, q_out, bins, dtype=spectrum.dtype)
    native.cdvft_multiply(
        *(spectrum.data_ptr(), tables["spectrum"].data_ptr(), at, mixed.data_ptr()),
        *(tokens, q_out, q_in, bins, threads),
    )
    change = torch.fft.irfft(mixed, n=p)  # [T, q_out, p]
    native.cdvft_add(
        *(y.data_ptr(), y.stride(0), y.dtype == half, change.data_ptr(), q_out * p),
        *(tables["diag_out"].data_ptr(), at, tokens, layout.d_out, threads),
    )
