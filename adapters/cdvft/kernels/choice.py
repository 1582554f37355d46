"""Which implementation adds CDVFT's change to a packed batch: the one place that decides, and says why.

"triton" is the kernel of fused.py (CUDA), "native" native.c with MKL's FFTs (CPU), "torch" is `Cdvft.apply` with
cuFFT or MKL, and stays the caller's to run.
"""

from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from typing import Literal

import torch
from torch import Tensor

from cdvft.kernels.native import add_native, missing, plans
from cdvft.kernels.plan import MAX_SIDE, fft_plan
from cdvft.methods.base import Tensors
from cdvft.methods.cdvft import CdvftLayout

__all__ = ["Choice", "Wanted", "choose", "fused_cdvft", "machine_choice"]

Name = Literal["triton", "native", "torch"]
Wanted = Literal["auto", "triton", "native", "torch"]
CAPABILITIES = {(9, 0)}  # H100, H200: for 8.0 the compiler spills too much, others have less shared memory
DTYPES = {"triton": (torch.float32, torch.bfloat16, torch.float16), "native": (torch.float32, torch.bfloat16)}
INDICES = {"triton": (torch.int32, torch.int64), "native": (torch.int64,)}


@dataclass(frozen=True)
class Choice:
    """An implementation's name, for metrics, and the reason, for people."""

    name: Name
    reason: str


@lru_cache(maxsize=256)
def machine_choice(device: torch.device, wanted: Wanted = "auto") -> Choice:
    """What this machine runs where the mathematics allow it. "triton" runs on any CUDA device, and on the CPU under
    Triton's interpreter."""
    if wanted == "torch":
        return Choice("torch", "asked for")
    if wanted == "native" or (wanted == "auto" and device.type == "cpu"):
        problem = _native_problem(device)
        name: Name = "native"
    else:
        problem, name = _triton_problem(device, wanted), "triton"
    if problem is not None:
        return Choice("torch", problem)
    return Choice(name, "asked for" if wanted != "auto" else f"the device is {device.type}")


@lru_cache(maxsize=1024)
def _choose(device: torch.device, layout: CdvftLayout, q_out: int, factors: int, wanted: Wanted) -> Choice:
    chosen = machine_choice(device, wanted)
    problem = None if chosen.name == "torch" else _mathematics(layout, q_out, factors, chosen.name)
    return chosen if problem is None else Choice("torch", problem)


def choose(tables: Tensors, layout: CdvftLayout, wanted: Wanted = "auto") -> Choice:
    """For a bank's tables of one site; what a kernel cannot compute is torch's, whatever is wanted."""
    blocks, factors = tables["spectrum"].shape[-3], tables["diag_out"].shape[-2] + 1
    return _choose(tables["diag_in"].device, layout, blocks, factors, wanted)


def fused_cdvft(
    x: Tensor, y: Tensor, rows: Tensor, tables: Tensors, layout: CdvftLayout, *, wanted: Wanted = "auto"
) -> bool:
    """`y[t] += dW[rows[t]] x[t]` in place by the chosen kernel: `x [T, d_in]`, `y [T, d_out]`, `rows [T]` of integers.

    `tables` are as `Cdvft.prepare` makes them, with a leading row axis; row 0 is the base, and its tokens stay as they
    are bit for bit. Rows must exist: nothing checks them. False: nothing was done, the caller runs `Cdvft.apply`.
    """
    name = choose(tables, layout, wanted).name
    if name == "torch" or not _fits(x, y, rows, tables, name):
        return False
    if len(x) == 0:
        return True
    if name == "native":
        add_native(x, y, rows, tables, layout)
        return True
    plan = fft_plan(layout.p)
    if plan is None:
        return False
    from cdvft.kernels.fused import launch

    launch(x, y, rows, tables, plan)
    return True


def _native_problem(device: torch.device) -> str | None:
    if device.type != "cpu":
        return f"the device is {device.type}, and native.c is for the CPU"
    return missing()


def _triton_problem(device: torch.device, wanted: Wanted) -> str | None:
    """Why this machine cannot or should not run the kernel."""
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


def _mathematics(layout: CdvftLayout, q_out: int, factors: int, name: Name) -> str | None:
    """Why the kernel cannot compute this."""
    if factors != 2:
        return f"{factors} factors: the kernels have 2"
    if layout.cyclic:
        return "cyclic padding"
    if name == "native" and plans(layout.p, layout.q_in, q_out) is None:
        return f"MKL has no real FFT of length {layout.p}"
    if name == "triton" and fft_plan(layout.p) is None:
        return f"block length {layout.p} is no product of two numbers up to {MAX_SIDE}"
    return None


def _fits(x: Tensor, y: Tensor, rows: Tensor, tables: Tensors, name: Name) -> bool:
    """Whether these tensors are ones that the kernel takes; it has no backward pass."""
    own = (tables["diag_in"], tables["spectrum"], tables["diag_out"])
    return (
        x.dtype in DTYPES[name]
        and y.dtype in DTYPES[name]
        and own[0].dtype == own[2].dtype == torch.float32
        and own[1].dtype == torch.complex64
        and all(table.is_contiguous() for table in own)
        and (x.stride(1) == y.stride(1) == 1 or len(x) == 0)
        and rows.dtype in INDICES[name]
        and rows.is_contiguous()
        and x.device == y.device == rows.device == own[0].device
        and not (torch.is_grad_enabled() and any(t.requires_grad for t in (x, y, *tables.values())))
    )
