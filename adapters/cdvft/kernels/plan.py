"""How one real FFT of length p is cut into small matrix products, and the matrices; no triton in here.

p = n1 n2, n = n2 a + b, k = k1 + n1 k2 (a, k1 < n1; b, k2 < n2), w(N) = exp(-2 pi i / N):
`X[k] = sum_b w(n2)^(b k2)  w(p)^(b k1)  sum_a x[n2 a + b] w(n1)^(a k1)`.
For real x, X[p - k] = conj X[k] maps k1 to n1 - k1: k1 <= n1/2 is enough, with every k2.
"""

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor

__all__ = ["MAX_SIDE", "FftPlan", "fft_matrices", "fft_plan"]

MAX_SIDE = 64  # of n1 and n2, padded: a tile of one token and its matrices then fit an SM (see fused.py)
MIN_SIDE = 16  # the shortest sum that tl.dot takes


def _padded(size: int) -> int:
    return max(MIN_SIDE, 1 << (size - 1).bit_length())


@dataclass(frozen=True)
class FftPlan:
    """`p = n1 * n2`; the padded sizes are powers of two, as Triton wants its tiles."""

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
    def rows(self) -> int:
        """Padded number of k1 that the matrix products compute."""
        return _padded(self.n1 // 2 + (not self.middle))

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
    """The cheapest cut of p, fewest middle rows and widest rows first among equals; None where there is none."""
    plans = [FftPlan(n1, p // n1) for n1 in range(1, min(p, MAX_SIDE) + 1) if p % n1 == 0 and p // n1 <= MAX_SIDE]
    return min(plans, key=lambda plan: (plan.cost, plan.middle, -plan.n1), default=None)


@lru_cache(maxsize=128)
def fft_matrices(plan: FftPlan, device: torch.device) -> Tensor:
    """All in one vector, real part then imaginary part of each, fp32, zero in the padding:

    w(n1)^(a k1) `[padded1, rows]`, w(p)^(b k1) `[padded2, rows]`, w(n2)^(k2 b) `[padded2, padded2]`, and with a
    middle row w(p)^(b (n1/2 + n1 k2)) `[padded2, half2]`.
    """
    kept = plan.n1 // 2 + (not plan.middle)
    a, b, k1, k2 = (torch.arange(size) for size in (plan.n1, plan.n2, kept, plan.n2))
    parts = [
        _roots(a[:, None] * k1, plan.n1, plan.padded1, plan.rows),
        _roots(b[:, None] * k1, plan.p, plan.padded2, plan.rows),
        _roots(b[:, None] * k2, plan.n2, plan.padded2, plan.padded2),
    ]
    if plan.middle:
        odd = plan.n1 // 2 + plan.n1 * k2[: (plan.n2 + 1) // 2]
        parts.append(_roots(b[:, None] * odd, plan.p, plan.padded2, plan.half2))
    return torch.cat(parts).to(device)


def _roots(power: Tensor, order: int, height: int, width: int) -> Tensor:
    """`exp(-2 pi i power / order)` padded with zeros to `[2, height, width]` and flattened; rounded once, to fp32."""
    angle = (power % order).double() * (-2 * math.pi / order)
    padded = torch.zeros(2, height, width, dtype=torch.float64)
    padded[:, : power.shape[0], : power.shape[1]] = torch.stack([angle.cos(), angle.sin()])
    return padded.float().flatten()
