"""Which implementation adds CDVFT's (or C3A's) change to a packed batch: the one place that decides, and says why.

"triton" is the kernel of fused.py (CUDA), "native" native.c with MKL's FFTs (CPU), "torch" is `Cdvft.apply` with
cuFFT or MKL, and stays the caller's to run.
"""

from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from typing import Literal

import torch

from cdvft.kernels.native import NativeAdder, missing, plans
from cdvft.kernels.plan import MAX_SIDE, fft_plan
from cdvft.methods.base import Adder, Tensors
from cdvft.methods.cdvft import CdvftLayout

__all__ = ["Choice", "Wanted", "choose", "machine_choice", "make_adder"]

Name = Literal["triton", "native", "torch"]
Wanted = Literal["auto", "triton", "native", "torch"]
CAPABILITIES = {(9, 0)}  # H100, H200: for 8.0 the compiler spills too much, others have less shared memory


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
    factors = tables["diag_out"].shape[-2] + 1 if "diag_out" in tables else 1
    return _choose(tables["spectrum"].device, layout, tables["spectrum"].shape[-3], factors, wanted)


def make_adder(tables: Tensors, layout: CdvftLayout, wanted: Wanted = "auto") -> Adder | None:
    """The chosen kernel for a bank's tables of one site, with a leading row axis; None: the caller runs `Method.apply`.

    Tables are as `Cdvft.prepare` makes them or, without diagonals, `C3a.prepare`. Row 0 is the base, zeros: its
    tokens stay as they are, bit for bit, but for infinities and NaN in x.
    """
    name = choose(tables, layout, wanted).name
    if name == "torch" or not _fit(tables):
        return None
    if name == "native":
        return NativeAdder(tables, layout)
    from cdvft.kernels.fused import FusedAdder

    return FusedAdder(tables, layout)


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
    if factors > 2:
        return f"{factors} factors: the kernels have 2"
    if factors < 2 and name == "triton":
        return "no diagonals"
    if layout.cyclic:
        return "cyclic padding"
    if name == "native" and plans(layout.p, layout.q_in, q_out) is None:
        return f"MKL has no real FFT of length {layout.p}"
    if name == "triton" and fft_plan(layout.p) is None:
        return f"block length {layout.p} is no product of two numbers up to {MAX_SIDE}"
    return None


def _fit(tables: Tensors) -> bool:
    """Whether the kernels read such tables."""
    return all(
        table.is_contiguous() and table.dtype == (torch.complex64 if name == "spectrum" else torch.float32)
        for name, table in tables.items()
    )
