"""The orthonormal discrete cosine transform by one real FFT of its length (Makhoul, doi 10.1109/TASSP.1980.1163351).

DCT-II: `X[k] = s_k sum_n x[n] cos(pi (2n + 1) k / 2N)` with `s_0 = sqrt(1/N)`, else `sqrt(2/N)`; the inverse is the
transpose. Both are differentiable.
"""

import math
from functools import cache

import torch
from torch import Tensor

__all__ = ["dct", "dct_matrix", "idct"]


def dct(x: Tensor) -> Tensor:
    """DCT-II along the last axis, `[..., N] -> [..., N]`."""
    n = x.shape[-1]
    folded = torch.cat([x[..., ::2], x[..., 1::2].flip(-1)], dim=-1)  # even samples up, odd ones down
    turned = torch.fft.rfft(folded) * _twiddle(n, x)
    lower, upper = turned.real, -turned.imag[..., 1 : (n + 1) // 2].flip(-1)  # X[N - k] = -Im of bin k
    return torch.cat([lower, upper], dim=-1)


def idct(y: Tensor) -> Tensor:
    """DCT-III, the inverse and transpose of `dct`, `[..., N] -> [..., N]`."""
    n = y.shape[-1]
    half = n // 2 + 1
    # bin k is (y[k] - i y[N - k]) / twiddle; the bins that are their own mirror have no second entry of their own
    mirrored = torch.zeros_like(y[..., :half])
    mirrored[..., 1 : (n + 1) // 2] = y[..., n // 2 + 1 :].flip(-1)
    if n % 2 == 0:
        mirrored[..., n // 2] = y[..., n // 2]  # cos and sin of pi/4 are equal there
    bins = torch.complex(y[..., :half], -mirrored) / _twiddle(n, y)
    folded = torch.fft.irfft(bins, n=n)
    even = (n + 1) // 2
    out = torch.empty_like(folded)
    out[..., ::2], out[..., 1::2] = folded[..., :even], folded[..., even:].flip(-1)
    return out


def dct_matrix(n: int, rows: Tensor) -> Tensor:
    """These rows of the transform's matrix `D [N, N]`, float64 `[rows, N]`: X = D x."""
    angle = (rows[:, None] * (2 * torch.arange(n) + 1) % (4 * n)).double() * (math.pi / (2 * n))
    scale = torch.full((len(rows), 1), math.sqrt(2 / n), dtype=torch.float64)
    scale[rows == 0] = math.sqrt(1 / n)
    return angle.cos() * scale


def _twiddle(n: int, like: Tensor) -> Tensor:
    return _twiddles(n, torch.promote_types(like.dtype, torch.complex64), like.device)


@cache
def _twiddles(n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """`s_k exp(-i pi k / 2N)` for the bins of an rfft, complex `[N // 2 + 1]`."""
    with torch.inference_mode(False):  # kept beyond the caller's mode
        k = torch.arange(n // 2 + 1, dtype=torch.float64)
        scale = torch.full_like(k, math.sqrt(2 / n))
        scale[0] = math.sqrt(1 / n)
        return torch.polar(scale, -math.pi / (2 * n) * k).to(device, dtype)
