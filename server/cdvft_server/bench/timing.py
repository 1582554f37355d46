"""Sides that take turns, and what is read off them. Knows nothing of adapters."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Lap", "Side", "Timed", "milliseconds", "rounds"]


@dataclass(frozen=True)
class Lap:
    """One batch: the tokens that it is credited with, and the seconds that it took."""

    tokens: int
    seconds: float


Side = Callable[[int], Sequence[Lap]]
"""Runs the batches of the round of this number; -1 is the warm-up."""


@dataclass(frozen=True)
class Timed:
    """All rounds of one side."""

    rounds: Sequence[Sequence[Lap]]

    @property
    def throughputs(self) -> list[float]:
        """Tokens per second, of each round."""
        return [sum(lap.tokens for lap in own) / sum(lap.seconds for lap in own) for own in self.rounds]

    @property
    def tokens_per_s(self) -> float:
        """The rounds' median."""
        return round(statistics.median(self.throughputs), 1)

    def ratio_to(self, other: "Timed") -> float:
        """This side's throughput over the other's: the median of the rounds' own ratios."""
        pairs = zip(self.throughputs, other.throughputs, strict=True)
        return round(statistics.median(own / its for own, its in pairs), 4)

    @property
    def latencies(self) -> dict[str, float]:
        return milliseconds([lap.seconds for own in self.rounds for lap in own])


def rounds(sides: Mapping[str, Side], runs: int) -> dict[str, Timed]:
    """One warm-up of each side, then `runs` rounds in which each runs once, every other round in reverse order."""
    for side in sides.values():
        side(-1)
    found: dict[str, list[Sequence[Lap]]] = {name: [] for name in sides}
    for number in range(runs):
        for name in list(sides)[:: 1 if number % 2 == 0 else -1]:
            found[name].append(sides[name](number))
    return {name: Timed(own) for name, own in found.items()}


def milliseconds(seconds: Sequence[float]) -> dict[str, float]:
    """`p50_ms` and `p95_ms`, the latter the smallest value that 95% do not exceed."""
    ordered = sorted(seconds)
    high = ordered[min(len(ordered) - 1, -(-len(ordered) * 95 // 100) - 1)]
    return {"p50_ms": round(statistics.median(ordered) * 1e3, 3), "p95_ms": round(high * 1e3, 3)}
