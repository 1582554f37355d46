"""An engine with a fleet of adapters resident, and the base's own side of the same work."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from cdvft.backbone import Backbone
from cdvft.prepared import PreparedAdapter, prepare_adapter

from cdvft_server.bench.fleet import Fleet, check_memory, memory_of
from cdvft_server.bench.loads import Load
from cdvft_server.bench.timing import Lap
from cdvft_server.engine import AdapterPool, Engine, EngineConfig, Lease

__all__ = ["Served", "serving"]

BASE: Sequence[int] = ()  # instead of adapters' numbers: every request names the base
MEMORY_SHARE = 0.5  # of a machine's memory
DEVICE_SHARE = 0.8  # of what is free on an accelerator
SPARE = 1.1  # of the adapters' bytes: the pool grows in few steps


class Served:
    """`digests[k]` is adapter k. On the base a classification still needs a head: `head` is one without vectors."""

    def __init__(self, backbone: Backbone, pool: AdapterPool, engine: Engine, fleet: Fleet) -> None:
        self.backbone, self.pool, self.engine, self.fleet = backbone, pool, engine, fleet
        self.digests: list[str] = []
        self.row_bytes = self.shared_bytes = 0
        self.head = None if fleet.spec.head is None else self._place_head(prepare_adapter(fleet.adapter(0)))

    def place(self, prepared: PreparedAdapter) -> None:
        self.pool.place(prepared).release()
        self.digests.append(prepared.digest)
        self.row_bytes, self.shared_bytes = prepared.nbytes, prepared.shared_nbytes

    def run(self, load: Load, adapters: Sequence[int] = BASE) -> Lap:
        """Request k names adapter `adapters[k]`; BASE: the base, for a classification with one head for all."""
        return load.run(self.engine, self.leases(load, adapters))

    def leases(self, load: Load, adapters: Sequence[int]) -> list[Lease | None]:
        if not adapters and self.head is None:
            return [None] * len(load.prompts)
        names = [self.digests[k] for k in adapters]
        return [self._lease(name) for name in names or [str(self.head)] * len(load.prompts)]

    def _lease(self, digest: str) -> Lease:
        lease = self.pool.acquire(digest)
        if lease is None:
            raise RuntimeError(f"adapter {digest} is not resident")
        return lease

    def _place_head(self, prepared: PreparedAdapter) -> str:
        bare = replace(
            prepared,
            digest="head alone",
            tables={"no site": {"unused": torch.zeros(1)}},
            shared={},
            layouts={"no site": None},
            signature="head alone",
            nbytes=4,
            shared_nbytes=0,
        )
        self.pool.place(bare).release()
        return bare.digest


@contextmanager
def serving(
    backbone: Backbone,
    fleet: Fleet,
    adapters: int,
    loads: Sequence[Load],
    threads: int,
    *,
    budget: int | None = None,
    fit_costs: bool = False,
) -> Iterator[Served]:
    """The first `adapters` of the fleet resident; room for the largest of `loads`; an engine of so many threads.
    `budget` None: what they need.

    Raises BenchError where the memory does not hold them.
    """
    one = prepare_adapter(fleet.adapter(0))
    check_memory(one, adapters, free_memory(backbone.device))
    pool = AdapterPool(backbone.device, budget or int(SPARE * memory_of(one, adapters)) + (1 << 20))
    config = EngineConfig(
        context_length=max(load.longest for load in loads),
        kv_tokens=max(load.kv_tokens for load in loads),
        max_queue=max(1024, *(len(load.prompts) for load in loads)),
        threads=threads,
        fit_costs=fit_costs,
    )
    engine = Engine(backbone, pool, config)
    served = Served(backbone, pool, engine, fleet)
    for prepared in fleet.prepared(adapters):
        served.place(prepared)
    engine.start()
    try:
        yield served
    finally:
        engine.stop(1.0)


def free_memory(device: torch.device) -> int:
    """Bytes that a fleet may take."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0] * DEVICE_SHARE)
    return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * MEMORY_SHARE)
