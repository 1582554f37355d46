"""Counting numbers into ranges: cheap to write from one thread, and safe to read from any other."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

__all__ = ["SECONDS", "SIZES", "STEPS", "Histogram", "Spread"]

STEPS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)  # seconds: of a step, a token, a load
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)  # of a request
SIZES = tuple(float(1 << k) for k in range(14))  # 1 to 8,192


@dataclass(frozen=True)
class Spread:
    """`buckets` are (upper bound or "+Inf", how many numbers up to it), `total` is the sum of all numbers."""

    buckets: list[tuple[str, float]]
    total: float


class Histogram:
    """Written by one thread. A reader in another may see a number in `total` a moment later than in the buckets."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._total = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._total += value

    def read(self) -> Spread:
        names = [*map(str, self._bounds), "+Inf"]
        return Spread(list(zip(names, map(float, accumulate(list(self._counts))), strict=True)), self._total)
