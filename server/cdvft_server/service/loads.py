"""How long adapters took to come onto the device, by where they came from."""

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

__all__ = ["LoadTimes", "Source", "Times"]

Source = Literal["host", "store"]
BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)  # seconds


@dataclass(frozen=True)
class Times:
    """`buckets` are (upper bound or "+Inf", loads up to it); `seconds` is their sum."""

    buckets: list[tuple[str, float]]
    seconds: float


class LoadTimes:
    """For the loop's thread only."""

    def __init__(self) -> None:
        self._counts: dict[Source, list[int]] = {"host": [0] * (len(BOUNDS) + 1), "store": [0] * (len(BOUNDS) + 1)}
        self._seconds: dict[Source, float] = {"host": 0.0, "store": 0.0}

    def observe(self, source: Source, seconds: float) -> None:
        self._counts[source][bisect_left(BOUNDS, seconds)] += 1
        self._seconds[source] += seconds

    def read(self) -> Mapping[str, Times]:
        names = [*map(str, BOUNDS), "+Inf"]
        return {
            source: Times(list(zip(names, map(float, accumulate(counts)), strict=True)), self._seconds[source])
            for source, counts in self._counts.items()
        }
