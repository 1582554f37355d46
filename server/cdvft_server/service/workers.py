"""The one thread pool: reads, validates and prepares adapters, and tokenises."""

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

__all__ = ["Workers"]

P = ParamSpec("P")
T = TypeVar("T")


class Workers:
    """`run` is for what a request waits for; `run_long` (uploads, downloads) never takes more than half the threads."""

    def __init__(self, count: int | None = None) -> None:
        count = count or max(4, (os.cpu_count() or 1) + 2)
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="cdvft-worker")
        self._long = asyncio.Semaphore(count // 2)

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, lambda: function(*args, **kwargs))

    async def run_long(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        async with self._long:
            return await self.run(function, *args, **kwargs)

    def close(self) -> None:
        """Waits for what runs; what has not begun is dropped."""
        self._pool.shutdown(cancel_futures=True)
