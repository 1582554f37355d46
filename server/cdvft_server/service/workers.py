"""The worker threads, in lanes: what is slow in one lane keeps no other waiting."""

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import ParamSpec, TypeVar

__all__ = ["Lane", "Workers"]

P = ParamSpec("P")
T = TypeVar("T")


class Lane:
    """`count` threads. A call that is cancelled before its turn never runs; one that began keeps its turn until its
    thread has ended, whoever still waits for it: no more than `count` calls hold a thread or their arguments.
    """

    def __init__(self, name: str, count: int) -> None:
        self._pool = ThreadPoolExecutor(count, thread_name_prefix=f"cdvft-{name}")
        self._turns = asyncio.Semaphore(count)

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        loop = asyncio.get_running_loop()

        def ended(_: "Future[T]") -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody waits for a turn
                loop.call_soon_threadsafe(self._turns.release)

        await self._turns.acquire()
        try:
            future = self._pool.submit(function, *args, **kwargs)
        except BaseException:
            self._turns.release()
            raise
        future.add_done_callback(ended)
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """Waits for what runs; what has not begun is dropped."""
        self._pool.shutdown(cancel_futures=True)


class Workers:
    """`run` is for what every request waits for: names looked up, leases. `run_long` is for uploads, downloads and
    large texts. `texts` tokenises, `templates` waits for template processes (`renderers` of them), `bodies` reads large
    JSON, one at a time, `beats` tells the other replicas and hears from them.
    """

    def __init__(self, renderers: int, count: int | None = None) -> None:
        count = count or max(4, (os.cpu_count() or 1) + 2)
        self._lookups = Lane("worker", count)
        self._long = Lane("long", count // 2)
        self.texts = Lane("text", count // 2)
        self.templates = Lane("template", renderers)
        self.bodies = Lane("body", 1)
        self.beats = Lane("beat", 1)

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._lookups.run(function, *args, **kwargs)

    async def run_long(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._long.run(function, *args, **kwargs)

    def close(self) -> None:
        for lane in (self._lookups, self._long, self.texts, self.templates, self.bodies, self.beats):
            lane.close()
