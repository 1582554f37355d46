"""Bringing adapters onto the device before the server is ready."""

import logging

from cdvft_server.engine.pool import PoolFull
from cdvft_server.errors import ApiError
from cdvft_server.service.parts import Parts
from cdvft_server.service.residency import Residency
from cdvft_server.service.stored import is_whole

__all__ = ["preload"]

log = logging.getLogger(__name__)

MISSES = 8  # in a row: the rest will not fit either


async def preload(parts: Parts, residency: Residency, wanted: int | None) -> None:
    """The most recently used adapters (None: all), as far as there is room. What is left out is logged."""
    if wanted == 0:
        return
    rows = await parts.workers.run(parts.store.recent, parts.base.digest, wanted)
    missed = loaded = 0
    for row in rows:
        if missed == MISSES:
            break
        try:
            if is_whole(row):
                await residency.warm(row)
                loaded, missed = loaded + 1, 0
        except ApiError:
            pass  # it was logged where it was read
        except PoolFull:
            missed += 1
    if loaded < len(rows):
        budget = parts.pool.stats().budget_bytes
        log.warning("preloaded %s of %s adapters: others are damaged, or beyond %s bytes", loaded, len(rows), budget)
