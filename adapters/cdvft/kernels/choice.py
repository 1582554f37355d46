"""Which implementation adds CDVFT's change to a packed batch: the one place that decides, and says why.

"torch" is `Cdvft.apply` with cuFFT or MKL, and stays the caller's to run; "triton" is the kernel of fused.py.
"""

from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from typing import Literal

import torch
from torch import Tensor

from cdvft.kernels.plan import MAX_SIDE, fft_plan
from cdvft.methods.base import Tensors
from cdvft.methods.cdvft import CdvftLayout

__all__ = ["Choice", "Wanted", "choose", "fused_cdvft"]

Wanted = Literal["auto", "triton", "torch"]
CAPABILITIES = {(9, 0)}  # H100, H200: for 8.0 the compiler spills too much, others have less shared memory
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Choice:
    """An implementation's name, for metrics, and the reason, for people."""

    name: Literal["triton", "torch"]
    reason: str


def choose(tables: Tensors, layout: CdvftLayout, wanted: Wanted = "auto") -> Choice:
    """For a bank's tables of one site. "triton" runs on any CUDA device, and on the CPU under Triton's interpreter;
    what the kernel cannot compute is torch's all the same."""
    if wanted == "torch":
        return Choice("torch", "asked for")
    reason = _machine(tables["diag_in"].device, wanted) or _mathematics(tables, layout)
    return Choice("torch", reason) if reason else Choice("triton", "asked for" if wanted == "triton" else "CUDA device")


def fused_cdvft(
    x: Tensor, y: Tensor, rows: Tensor, tables: Tensors, layout: CdvftLayout, *, wanted: Wanted = "auto"
) -> bool:
    """`y[t] += dW[rows[t]] x[t]` in place by the fused kernel: `x [T, d_in]`, `y [T, d_out]`, `rows [T]` of integers.

    `tables` are as `Cdvft.prepare` makes them, with a leading row axis; row 0 is the base, and its tokens stay as they
    are bit for bit. Rows must exist: nothing checks them. False: nothing was done, the caller runs `Cdvft.apply`.
    """
    plan = fft_plan(layout.p)
    if plan is None or choose(tables, layout, wanted).name != "triton" or not _fits(x, y, rows, tables):
        return False
    if len(x):
        from cdvft.kernels.fused import launch

        launch(x, y, rows, tables, plan)
    return True


@lru_cache(maxsize=64)
def _machine(device: torch.device, wanted: Wanted) -> str | None:
    """Why this machine cannot or should not run the kernel."""
    if device.type != "cuda" and wanted == "auto":
        return f"the device is {device.type}"
    if find_spec("triton") is None:
        return "triton is not installed"
    if device.type == "cuda":
        if torch.version.cuda is None:
            return "the GPU is not NVIDIA's"
        capability = torch.cuda.get_device_capability(device)
        if wanted == "auto" and capability not in CAPABILITIES:
            return f"compute capability {capability[0]}.{capability[1]} is untried"
        return None
    import triton

    return None if triton.knobs.runtime.interpret else f"the device is {device.type}, and Triton's interpreter is off"


def _mathematics(tables: Tensors, layout: CdvftLayout) -> str | None:
    """Why the kernel cannot compute this."""
    factors = tables["diag_out"].shape[-2] + 1
    if factors != 2:
        return f"{factors} factors: the kernel has 2"
    if layout.cyclic:
        return "cyclic padding"
    if fft_plan(layout.p) is None:
        return f"block length {layout.p} is no product of two numbers up to {MAX_SIDE}"
    types = {"diag_in": torch.float32, "spectrum": torch.complex64, "diag_out": torch.float32}
    if any(tables[name].dtype != dtype or not tables[name].is_contiguous() for name, dtype in types.items()):
        return "the tables are not contiguous in single precision"
    return None


def _fits(x: Tensor, y: Tensor, rows: Tensor, tables: Tensors) -> bool:
    """Whether these tensors are ones that the kernel takes; it has no backward pass."""
    return (
        x.dtype in DTYPES
        and y.dtype in DTYPES
        and (x.stride(1) == y.stride(1) == 1 or len(x) == 0)
        and rows.dtype in (torch.int32, torch.int64)
        and rows.is_contiguous()
        and x.device == y.device == rows.device == tables["diag_in"].device
        and not (torch.is_grad_enabled() and any(t.requires_grad for t in (x, y, *tables.values())))
    )
