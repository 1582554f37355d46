"""How one real FFT of length p is cut into small matrix products, and the matrices; no triton in here.

p = n1 n2, n = n2 a + b, k = k1 + n1 k2 (a, k1 < n1; b, k2 < n2), w(N) = exp(-2 pi i / N):
`X[k] = sum_b w(n2)^(b k2)  w(p)^(b k1)  sum_a x[n2 a + b] w(n1)^(a k1)`.
For real x, X[p - k] = conj X[k] maps k1 to n1 - k1: k1 <= n1/2 is enough, with every k2.
"""

import math
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache

import torch
from torch import Tensor

__all__ = ["MAX_SIDE", "FftPlan", "fft_matrices", "fft_plan"]

MAX_SIDE = 64  # of n1 and n2: with 128 the matrices alone would fill an SM's shared memory
MIN_SIDE = 16  # the shortest sum that tl.dot takes


def _padded(size: int) -> int:
    return max(MIN_SIDE, 1 << (size - 1).bit_length())


@dataclass(frozen=True)
class FftPlan:
    """`p = n1 * n2`; padded sizes are powers of two, as Triton wants its tiles."""

    n1: int
    n2: int

    @property
    def p(self) -> int:
        return self.n1 * self.n2

    @property
    def padded1(self) -> int:
        return _padded(self.n1)

    @property
    def padded2(self) -> int:
        return _padded(self.n2)

    @cached_property
    def middle(self) -> bool:
        """Whether k1 = n1/2 is computed apart: as one more row it would double the padded rows."""
        return self.n1 % 2 == 0 and _padded(self.n1 // 2 + 1) > _padded(self.n1 // 2)

    @property
    def kept(self) -> int:
        """Number of k1 that the matrix products compute."""
        return self.n1 // 2 + (not self.middle)

    @property
    def rows(self) -> int:
        """`kept`, padded."""
        return _padded(self.kept)

    @property
    def half2(self) -> int:
        """Padded number of k2 that the middle row needs: k2 and n2 - 1 - k2 are conjugates there."""
        return 1 << ((self.n2 + 1) // 2 - 1).bit_length()

    @property
    def cost(self) -> int:
        """Multiply-adds of one real FFT as the kernel computes it, padding included."""
        return self.padded2 * self.rows * (2 * self.padded1 + 4 * self.padded2)


@lru_cache(maxsize=1024)
def fft_plan(p: int) -> FftPlan | None:
    """The cheapest cut of p; among equals one without a middle row, then with the longest n1. None: there is none."""
    plans = [FftPlan(n1, p // n1) for n1 in range(1, min(p, MAX_SIDE) + 1) if p % n1 == 0 and p // n1 <= MAX_SIDE]
    return min(plans, key=lambda plan: (plan.cost, plan.middle, -plan.n1), default=None)


@cache  # never dropped: recorded kernels read them where they lie; all 1,263 plans together have 79 MiB
def fft_matrices(plan: FftPlan, device: torch.device) -> Tensor:
    """All matrices in one fp32 vector, zero in the padding, in this order (transforms.py knows it too):

    * f = w(n1)^(a k1) `[padded1, rows]` and g = w(n2)^(k2 b) `[padded2, padded2]`, four planes each: real high, real
      low, imaginary high, imaginary low; high has TF32's bits, high + low about 22;
    * w(p)^(b k1) `[padded2, rows]`, and with a middle row w(p)^(b (n1/2 + n1 k2)) `[padded2, half2]`, two planes each:
      real, imaginary.
    """
    a, b, k1, k2 = (torch.arange(size) for size in (plan.n1, plan.n2, plan.kept, plan.n2))
    parts = [
        _high_and_low(_roots(a[:, None] * k1, plan.n1, plan.padded1, plan.rows)),
        _high_and_low(_roots(b[:, None] * k2, plan.n2, plan.padded2, plan.padded2)),
        _roots(b[:, None] * k1, plan.p, plan.padded2, plan.rows),
    ]
    if plan.middle:
        odd = plan.n1 // 2 + plan.n1 * k2[: (plan.n2 + 1) // 2]
        parts.append(_roots(b[:, None] * odd, plan.p, plan.padded2, plan.half2))
    return torch.cat([part.float().flatten() for part in parts]).to(device)


def _roots(power: Tensor, order: int, height: int, width: int) -> Tensor:
    """`exp(-2 pi i power / order)` padded with zeros: real, imaginary `[2, height, width]` in float64."""
    angle = (power % order).double() * (-2 * math.pi / order)
    padded = torch.zeros(2, height, width, dtype=torch.float64)
    padded[:, : power.shape[0], : power.shape[1]] = torch.stack([angle.cos(), angle.sin()])
    return padded


def _high_and_low(values: Tensor) -> Tensor:
    """`[2, ...]` float64 -> `[2, 2, ...]`: rounded to TF32's 11 significant bits, and what is missing."""
    mantissa, exponent = torch.frexp(values)
    high = torch.ldexp(torch.round(mantissa * 2**11), exponent - 11)
    return torch.stack([high, values - high], dim=1)
