"""Circulant products by one-dimensional real FFTs, with the gradient of arXiv 2505.00580, Eq. 11.

`circ(c)[r, s] = c[(r - s) mod p]` (first column), so `circ(c) y = irfft(rfft(c) * rfft(y), n=p)` (Eq. 2 and 8).
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

__all__ = ["block_circulant", "circulant_spectrum"]


def circulant_spectrum(c: Tensor) -> Tensor:
    """`rfft(c)` along the last axis, `[..., p] -> [..., p // 2 + 1]` complex; the gradient costs one irfft."""
    if not (torch.is_grad_enabled() and c.requires_grad):
        plain: Tensor = torch.fft.rfft(c)
        return plain
    return _Spectrum.apply(c)  # type: ignore[no-any-return, no-untyped-call]


def block_circulant(x: Tensor, spectrum: Tensor, p: int) -> Tensor:
    """Multiply by a grid of circulant blocks: `y[i] = sum_j circ(c[i, j]) x[j]` (Eq. 12).

    `x [..., q_in, p]`, `spectrum [..., q_out, q_in, p // 2 + 1]` (leading axes broadcast) -> `[..., q_out, p]`.
    The backward pass reuses the forward's spectra; the spectrum's gradient is summed over rows before any inverse FFT.
    """
    if torch.is_grad_enabled() and (x.requires_grad or spectrum.requires_grad):
        return _BlockCirculant.apply(x, spectrum, p)  # type: ignore[no-any-return, no-untyped-call]
    y: Tensor = torch.fft.irfft(_multiply(torch.fft.rfft(x), spectrum), n=p)
    return y


def _multiply(x_spectrum: Tensor, spectrum: Tensor) -> Tensor:
    if spectrum.shape[-2] == 1:  # one input block: nothing to sum
        return x_spectrum * spectrum[..., 0, :]
    return (x_spectrum.unsqueeze(-3) * spectrum).sum(-2)


def _bin_weights(p: int, like: Tensor) -> Tensor:
    """How often each half-spectrum bin counts in the full spectrum: 1 for DC and Nyquist, else 2. `[p // 2 + 1]`."""
    weights = torch.full((p // 2 + 1,), 2.0, dtype=like.dtype, device=like.device)
    weights[0] = 1.0
    if p % 2 == 0:
        weights[-1] = 1.0
    return weights


class _Spectrum(torch.autograd.Function):
    """rfft whose backward is one irfft: grad_c = irfft(p * G / weight), torch's convention G = dL/dRe + i dL/dIm."""

    @staticmethod
    def forward(ctx: Any, c: Tensor) -> Tensor:
        ctx.p = c.shape[-1]
        spectrum: Tensor = torch.fft.rfft(c)
        return spectrum

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        weights = _bin_weights(ctx.p, grad.real)
        grad_c: Tensor = torch.fft.irfft(grad * (ctx.p / weights), n=ctx.p)
        return grad_c


class _BlockCirculant(torch.autograd.Function):
    """Eq. 11: dL/dx = irfft(conj(S) F_g), dL/dc = irfft(conj(rfft(x)) F_g) with F_g = rfft(dL/dy)."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, spectrum: Tensor, p: int) -> Tensor:
        x_spectrum = torch.fft.rfft(x)
        ctx.save_for_backward(x_spectrum, spectrum)
        ctx.p = p  # type: ignore[attr-defined]
        y: Tensor = torch.fft.irfft(_multiply(x_spectrum, spectrum), n=p)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x_spectrum, spectrum = ctx.saved_tensors
        g = torch.fft.rfft(grad)  # [..., q_out, f]
        grad_x = grad_spectrum = None
        if ctx.needs_input_grad[0]:
            back = _multiply(g, spectrum.conj().transpose(-3, -2))  # [..., q_in, f]
            grad_x = torch.fft.irfft(back, n=ctx.p).sum_to_size((*x_spectrum.shape[:-1], ctx.p))
        if ctx.needs_input_grad[1]:
            grad_spectrum = _spectrum_gradient(x_spectrum, g, spectrum.shape)
            grad_spectrum = grad_spectrum * (_bin_weights(ctx.p, grad_spectrum.real) / ctx.p)
        return grad_x, grad_spectrum, None


def _spectrum_gradient(x_spectrum: Tensor, g: Tensor, shape: torch.Size) -> Tensor:
    """`conj(X)[j] G[i]` summed over the rows that share one spectrum; `[..., q_out, q_in, f]`."""
    if len(shape) == 3:
        rows_x = (
            x_spectrum.expand(g.shape[:-2] + x_spectrum.shape[-2:]).flatten(0, -3) if g.dim() > 2 else x_spectrum[None]
        )
        rows_g = g.flatten(0, -3) if g.dim() > 2 else g[None]
        if shape[0] == shape[1] == 1:
            return (rows_x.conj() * rows_g).sum(0)[None]
        return torch.einsum("tjf,tif->ijf", rows_x.conj(), rows_g)
    return (x_spectrum.conj().unsqueeze(-3) * g.unsqueeze(-2)).sum_to_size(shape)
