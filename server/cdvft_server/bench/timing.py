"""Sides that take turns, and what is read off them. Knows nothing of adapters."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from cdvft_server.process import settled_heap

__all__ = ["WARM_UP", "Lap", "Side", "Timed", "in_turn", "milliseconds"]

WARM_UP = -1


@dataclass(frozen=True)
class Lap:
    """One batch: the tokens that it is credited with, and the seconds that it took."""

    tokens: int
    seconds: float

    @property
    def throughput(self) -> float:
        """Tokens per second."""
        return self.tokens / self.seconds


Side = Callable[[int], Lap]
"""Runs the batch of this number; all sides of a measurement do the same work under one number."""


@dataclass(frozen=True)
class Timed:
    """All laps of one side."""

    laps: Sequence[Lap]

    @property
    def tokens_per_s(self) -> float:
        """The laps' median."""
        return round(statistics.median(lap.throughput for lap in self.laps), 1)

    def ratio_to(self, other: "Timed") -> float:
        """This side's throughput over the other's: the median over the pairs of laps of one number."""
        pairs = zip(self.laps, other.laps, strict=True)
        return round(statistics.median(own.throughput / its.throughput for own, its in pairs), 4)

    @property
    def latencies(self) -> dict[str, float]:
        return milliseconds([lap.seconds for lap in self.laps])


def in_turn(sides: Mapping[str, Side], count: int) -> dict[str, Timed]:
    """One warm-up of each side, then laps 0 to `count` - 1, each by every side before the next; who begins changes."""
    for side in sides.values():
        side(WARM_UP)
    found: dict[str, list[Lap]] = {name: [] for name in sides}
    names = list(sides)
    with settled_heap():  # as in a server
        for number in range(count):
            first = number % len(names)
            for name in names[first:] + names[:first]:
                found[name].append(sides[name](number))
    return {name: Timed(own) for name, own in found.items()}


def milliseconds(seconds: Sequence[float]) -> dict[str, float]:
    """`p50_ms` and `p95_ms`, the latter the smallest value that 95% do not exceed."""
    ordered = sorted(seconds)
    high = ordered[-(-len(ordered) * 95 // 100) - 1]
    return {"p50_ms": round(statistics.median(ordered) * 1e3, 3), "p95_ms": round(high * 1e3, 3)}
