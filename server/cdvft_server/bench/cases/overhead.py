"""What adapters cost on top of the base, and whether it grows with how many are in use."""

import statistics
from collections.abc import Iterator, Sequence

from cdvft_server.bench.bench import Bench, Row
from cdvft_server.bench.loads import Load, greedy
from cdvft_server.bench.popularity import Draws
from cdvft_server.bench.served import Served, serving
from cdvft_server.bench.settings import Popularity, Settings
from cdvft_server.bench.timing import WARM_UP, Lap, Timed, in_turn

__all__ = ["overhead"]

COUNTS = (1, 32, 256, 1000, 10_000)
SECONDS = 2.0  # of one side's run at most
TOUCHED = 256  # adapters named by one batch of the pass that uses every one


def overhead(bench: Bench) -> Iterator[Row]:
    """The base against 1, 32, ... adapters in use, all resident; every size with every batch.

    A run is as many batches as let every adapter be named over all runs, if SECONDS allow it; every adapter has
    answered a request of one token before.
    """
    settings, backbone = bench.settings, bench.load()
    counts = [count for count in COUNTS if 2 * count <= settings.adapters] + [settings.adapters]
    loads = bench.loads(backbone)
    with serving(backbone, bench.fleet(backbone), settings.adapters, loads, bench.threads) as served:
        use_all(served)
        served.run(loads[0])  # warm
        batches = _batches(settings, served.run(loads[0]))
        for popularity in (settings.popularity,) if settings.popularity else ("uniform", "zipf"):
            sides = [Users(served, loads, settings, popularity, count) for count in (0, *counts)]
            timed = in_turn({str(side.count): side.lap for side in sides}, settings.runs * batches)
            yield from (_row(bench, side, timed) for side in sides)


def use_all(served: Served) -> None:
    """Every adapter answers one request of one token."""
    sampling = None if served.head else greedy(1)
    for start in range(0, len(served.digests), TOUCHED):
        numbers = range(start, min(start + TOUCHED, len(served.digests)))
        served.run(Load([[3]] * len(numbers), sampling), numbers)


class Users:
    """Requests over the first `count` adapters, 0: over none; `drawn` are the adapters of each batch that was timed."""

    def __init__(
        self, served: Served, loads: Sequence[Load], settings: Settings, popularity: Popularity, count: int
    ) -> None:
        self.served, self.loads, self.count, self.popularity = served, loads, count, popularity
        self.draws = Draws(popularity, count, settings.requests, settings.distinct) if count else None
        self.drawn: list[list[int]] = []

    def lap(self, number: int) -> Lap:
        """What the requests name is drawn before the time is taken."""
        named = self.draws.batch() if self.draws else []
        if number != WARM_UP:
            self.drawn.append(named)
        return self.served.run(self.loads[number % len(self.loads)], named)


def _batches(settings: Settings, lap: Lap) -> int:
    """Of one run."""
    wanted = -(-settings.adapters // (settings.requests * settings.runs))
    return max(1, min(wanted, int(SECONDS / lap.seconds)))


def _row(bench: Bench, side: Users, timed: dict[str, Timed]) -> Row:
    own = timed[str(side.count)]
    return bench.row(
        "overhead",
        f"{side.count:,} in use" if side.count else "base",
        adapters=side.count,
        distinct=round(statistics.median(len(set(batch)) for batch in side.drawn)),
        popularity=side.popularity,
        tokens_per_s=own.tokens_per_s,
        ratio_to_base=own.ratio_to(timed["0"]),
        **own.latencies,
        named=len({number for batch in side.drawn for number in batch}),
    )
