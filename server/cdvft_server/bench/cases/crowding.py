"""More adapters in use than the device has room for: what is left of the throughput."""

import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain
from pathlib import Path
from random import Random

from cdvft.backbone import Backbone
from cdvft.prepared import prepare_adapter

from cdvft_server.bench.bench import Bench, Row
from cdvft_server.bench.fleet import Fleet, memory_of
from cdvft_server.bench.loads import Load
from cdvft_server.bench.popularity import Draws
from cdvft_server.bench.served import Served, serving
from cdvft_server.bench.stored import Stored, stored_fleet
from cdvft_server.bench.timing import Lap, Side, in_turn
from cdvft_server.engine import Lease, PoolFull

__all__ = ["crowding"]

FACTORS = (1, 2, 4)
FITTING = 128  # adapters that the byte budget holds, at most
BATCHES = 2  # of requests in a lap
RETRY_SECONDS = 0.001


def crowding(bench: Bench, backbone: Backbone, fleet: Fleet) -> Iterator[Row]:
    """Uniform traffic over 1, 2 and 4 times as many adapters as the byte budget holds.

    As many clients as a batch has requests, but at most half as many as adapters fit, each with one request at a time;
    one that finds its adapter missing loads it from the store itself. Before each lap the device holds a random
    choice of this side's adapters, as many as fit: what uniform traffic leaves there.
    """
    settings = bench.settings
    fitting = min(FITTING, settings.adapters)
    loads = bench.loads(backbone)
    budget = memory_of(prepare_adapter(fleet.adapter(0)), fitting) + _head_alone_bytes(fleet)
    with (
        tempfile.TemporaryDirectory(prefix="cdvft-bench-") as folder,
        stored_fleet(fleet, max(FACTORS) * fitting, Path(folder)) as stored,
        serving(backbone, fleet, 0, loads, bench.threads, budget=budget) as served,
    ):
        traffic = Traffic(served, stored, loads, clients=max(1, min(settings.requests, fitting // 2)))
        sides: dict[str, Side] = {
            str(factor): partial(
                _laps, traffic, Draws("uniform", factor * fitting, settings.requests), Random(factor), fitting
            )
            for factor in FACTORS
        }
        timed = in_turn(sides, settings.runs)
    for factor in FACTORS:
        own = timed[str(factor)]
        yield bench.row(
            "residency",
            f"{factor} x the adapters that fit",
            adapters=factor * fitting,
            popularity="uniform",
            tokens_per_s=own.tokens_per_s,
            ratio_to_1x=own.ratio_to(timed["1"]),
            fitting=fitting,
        )


class Traffic:
    """Clients in threads of their own, who name adapters one after another until all requests have been answered."""

    def __init__(self, served: Served, stored: Stored, loads: Sequence[Load], clients: int) -> None:
        self.served, self.stored, self.clients = served, stored, clients
        self.requests = [Load([ids], load.sampling) for load in loads for ids in load.prompts]
        self._numbers = iter(range(1 << 62))
        self._lock = threading.Lock()

    def run(self, adapters: Sequence[int]) -> Lap:
        """Request k names adapter `adapters[k]`."""
        chosen = [self.requests[k % len(self.requests)] for k in range(len(adapters))]
        start = time.perf_counter()
        with ThreadPoolExecutor(self.clients) as clients:
            list(clients.map(self._ask, chosen, adapters))
        return Lap(sum(load.tokens for load in chosen), time.perf_counter() - start)

    def settle(self, adapters: Sequence[int]) -> None:
        """Bring these onto the device."""
        for number in adapters:
            self._lease(number).release()

    def _ask(self, load: Load, number: int) -> None:
        lease = self._lease(number)
        with self._lock:
            name = str(next(self._numbers))
        load.run(self.served.engine, [lease], name)

    def _lease(self, number: int) -> Lease:
        lease = self.served.pool.acquire(self.stored.rows[number].digest)
        if lease is not None:
            return lease
        prepared = self.stored.sources["store"](self.stored.rows[number])
        while True:
            try:
                return self.served.pool.place(prepared)
            except PoolFull:
                time.sleep(RETRY_SECONDS)  # others hold every row; none does for long


def _laps(traffic: Traffic, draws: Draws, chosen: Random, fitting: int, _: int) -> Lap:
    traffic.settle(chosen.sample(range(draws.adapters), fitting))
    return traffic.run(list(chain.from_iterable(draws.batch() for _ in range(BATCHES))))


def _head_alone_bytes(fleet: Fleet) -> int:
    """What the base's own head takes beside the fleet: a bank of FIRST_ROWS words, and the head."""
    head = prepare_adapter(fleet.adapter(0)).head_nbytes
    return head + 64 if head else 0
