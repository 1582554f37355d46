"""The only bridge between asyncio and the engine thread: what a running server is made of, and its start and end."""

import asyncio
from contextlib import AsyncExitStack
from typing import Self

import torch
from cdvft.backbone import Backbone

from cdvft_server import demo
from cdvft_server.config import ServeConfig
from cdvft_server.engine.engine import Engine
from cdvft_server.engine.pool import AdapterPool
from cdvft_server.errors import unavailable
from cdvft_server.service.access import Access
from cdvft_server.service.admin import Admin
from cdvft_server.service.bridge import Bridge
from cdvft_server.service.catalog import Catalog
from cdvft_server.service.classification import Classifier
from cdvft_server.service.deletes import Deletes
from cdvft_server.service.encoding import Encoding
from cdvft_server.service.flights import Flights
from cdvft_server.service.gauges import Gauges, read_gauges
from cdvft_server.service.generation import Generator
from cdvft_server.service.hits import Hits
from cdvft_server.service.lastknown import LastKnown
from cdvft_server.service.ledger import Ledger
from cdvft_server.service.limiter import Limiter
from cdvft_server.service.loading import load_base, make_engine, make_merged_pool, make_pool
from cdvft_server.service.merging import Merging
from cdvft_server.service.parts import RENDERERS, Parts
from cdvft_server.service.pins import Pins
from cdvft_server.service.preloading import preload
from cdvft_server.service.replication import Replication
from cdvft_server.service.residency import Residency
from cdvft_server.service.seeding import seed_demo, seed_folders
from cdvft_server.service.targets import Targets
from cdvft_server.service.turns import Turns
from cdvft_server.service.uploads import Uploads
from cdvft_server.service.usage import UsageReports
from cdvft_server.service.workers import Workers
from cdvft_server.store import DEFAULT_TENANT, Store
from cdvft_server.template_worker import TemplateWorkers

__all__ = ["TENANT", "Service"]

TENANT = DEFAULT_TENANT


class Service:
    """Made by `start`, ended by `close`. Its parts are what routes call."""

    def __init__(
        self, config: ServeConfig, backbone: Backbone, pool: AdapterPool, engine: Engine, store: Store
    ) -> None:
        """On the loop's thread; starts the template worker and nothing else."""
        self.config, self._draining = config, False
        self._threads_before = torch.get_num_threads()
        loop, workers = asyncio.get_running_loop(), Workers(RENDERERS, max_queue=config.max_queue)
        self.turns = Turns(loop, lambda: engine.hurried, fair=config.scheduling == "fair")
        self._parts = parts = Parts(
            config=config,
            backbone=backbone,
            engine=engine,
            pool=pool,
            merged=make_merged_pool(config, pool),
            store=store,
            workers=workers,
            templates=TemplateWorkers(RENDERERS, output_bytes=config.max_template_bytes),
            bridge=Bridge(loop, self.turns),
            flights=Flights(),
            hits=Hits(store, workers),
            last_known=LastKnown(config.stale_seconds),
            limiter=Limiter(),
            ledger=Ledger(store.usage, workers),
        )
        self.access, self.limiter = Access(config, store, workers), parts.limiter
        self._residency = Residency(parts)
        self._merging = Merging(parts, self._residency.read)
        encoding = Encoding(parts)
        self.targets = Targets(parts)
        self.generator = Generator(parts, self.targets, encoding, self._residency, self._merging)
        self.classifier = Classifier(parts, self.targets, encoding, self._residency, self._merging)
        self._pins = Pins(parts, self._residency)
        self.uploads = Uploads(parts, self._pins)
        self.usage = UsageReports(parts)
        self.bodies = workers.bodies
        deletes = Deletes(parts, self._residency, self._pins, self._merging)
        self._replication = Replication(parts, deletes, self._pins)
        self.catalog = Catalog(parts, self._residency, self._pins, deletes, self._replication)
        self.admin = Admin(parts, self.catalog, self.access)

    @classmethod
    async def start(cls, config: ServeConfig) -> Self:
        """Load, prove, start, join, seed, pin, preload. Raises StartRefused, UnsupportedBase, the store's errors;
        nothing is left behind then."""
        async with AsyncExitStack() as undo:
            before = torch.get_num_threads()
            undo.callback(torch.set_num_threads, before)
            torch.set_num_threads(1)  # but in the engine's thread: docs/decisions.md
            backbone = await asyncio.to_thread(load_base, config)
            store = await asyncio.to_thread(Store.open, config.database)
            undo.push_async_callback(asyncio.to_thread, store.close)
            pool = make_pool(config, backbone)
            engine = await asyncio.to_thread(make_engine, config, backbone, pool, config.threads or before)
            service = cls(config, backbone, pool, engine, store)
            service._threads_before = before
            undo.pop_all()
            undo.push_async_callback(service.close)
            await asyncio.to_thread(engine.start)
            service._parts.hits.start()
            service._parts.ledger.start()
            await service._replication.start()
            await service.access.start()
            await service._parts.workers.run(service._seed)
            await service._pins.load()
            await preload(service._parts, service._residency, None if config.preload == "all" else config.preload)
            undo.pop_all()
        return service

    async def drain(self, seconds: float) -> None:
        """Take no new requests, let those that run go on for this time, then cancel them: all get their last event."""
        self._draining = True
        await asyncio.to_thread(self._parts.engine.stop, seconds)

    async def close(self) -> None:
        """End the engine, write what is unwritten, leave no thread or process. May be called after `drain`."""
        try:
            await self.drain(self.config.drain_seconds)
            await self._replication.close()
            await self._residency.close()
            await self._merging.close()
            await self._parts.hits.close()
            await self._parts.ledger.close()
            for part in (self._parts.workers, self._parts.templates, self._parts.store):
                await asyncio.to_thread(part.close)
        finally:
            torch.set_num_threads(self._threads_before)

    def gauges(self) -> Gauges:
        """The engine's and the pool's numbers now."""
        return read_gauges(self._parts, self._residency.times)

    async def check_ready(self) -> None:
        """Raises ApiError unless the engine takes requests and the store answers."""
        if self._draining:
            raise unavailable("draining", "the server is stopping")
        await self._parts.workers.run(self._parts.store.ping)

    def _seed(self) -> None:
        config, store, base = self.config, self._parts.store, self._parts.base
        if config.base is None:
            seed_demo(self.uploads, store, base, TENANT, demo.adapters_path())
        seed_folders(self.uploads, store, base, TENANT, config.adapters, update=config.adapters_update)
