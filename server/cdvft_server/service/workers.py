"""The worker threads, in lanes: what is slow in one lane keeps no other waiting."""

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

from cdvft_server.errors import ApiError, unavailable

__all__ = ["Lane", "Workers"]

P = ParamSpec("P")
T = TypeVar("T")


@dataclass
class _Own:
    """What one tenant has in a lane: `calls` of which as many as there are `turns` are in its line, or run."""

    turns: asyncio.Semaphore
    calls: int = 0


class Lane:
    """`count` threads, and a line of at most `most_waiting` calls before them (None: any number). A call that is
    cancelled before its turn never runs; one that began keeps its turn until its thread has ended, whoever still waits
    for it: no more than `count` calls hold a thread or their arguments.
    """

    def __init__(self, name: str, count: int, most_waiting: int | None = None) -> None:
        self._name, self._most_waiting, self._waiting = name, most_waiting, 0
        self._pool = ThreadPoolExecutor(count, thread_name_prefix=f"cdvft-{name}")
        self._turns = asyncio.Semaphore(count)
        self._count, self._own = count, dict[str, _Own]()

    async def run_for(self, tenant: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """`run` with at most `count` of each tenant's calls at a time: the others wait for those, and keep no other
        tenant waiting. Raises ApiError overloaded where that line of its own is full."""
        own = self._own.setdefault(tenant, _Own(asyncio.Semaphore(self._count)))
        if self._most_waiting is not None and own.calls - self._count >= self._most_waiting:
            raise self._full(own.calls - self._count)
        own.calls += 1
        try:
            async with own.turns:
                return await self.run(function, *args, **kwargs)
        finally:
            own.calls -= 1
            if not own.calls:
                del self._own[tenant]

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Raises ApiError overloaded where the line is full."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()

        def settle(future: "Future[T]") -> None:
            self._turns.release()
            if answer.done():
                return
            if future.cancelled():
                answer.cancel()
            elif (error := future.exception()) is not None:
                answer.set_exception(error)
            else:
                answer.set_result(future.result())

        def ended(future: "Future[T]") -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody waits
                loop.call_soon_threadsafe(settle, future)

        await self._my_turn()
        try:
            future = self._pool.submit(function, *args, **kwargs)
        except BaseException:
            self._turns.release()
            raise
        future.add_done_callback(ended)
        return await answer

    async def _my_turn(self) -> None:
        if self._most_waiting is not None and self._turns.locked() and self._waiting >= self._most_waiting:
            raise self._full(self._waiting)
        self._waiting += 1
        try:
            await self._turns.acquire()
        finally:
            self._waiting -= 1

    def _full(self, waiting: int) -> ApiError:
        message = f"{waiting} calls wait for a {self._name} thread already; try again in a second"
        return unavailable("overloaded", message)

    def close(self) -> None:
        """Waits for what runs; what has not begun is dropped."""
        self._pool.shutdown(cancel_futures=True)


class Workers:
    """`run` is for what every request waits for: names looked up, leases. `run_long` is for uploads, downloads and
    large texts. `texts` tokenises, `templates` waits for template processes (`renderers` of them), `bodies` reads large
    JSON, one at a time. Before each at most `max_queue` calls wait, but for `run`: what it does takes a millisecond,
    and a connection waits for one at a time. `beats` tells the other replicas and hears from them.
    """

    def __init__(self, renderers: int, count: int | None = None, max_queue: int | None = None) -> None:
        count = count or max(4, (os.cpu_count() or 1) + 2)
        self._lookups = Lane("worker", count)
        self._long = Lane("long", count // 2, max_queue)
        self.texts = Lane("text", count // 2, max_queue)
        self.templates = Lane("template", renderers, max_queue)
        self.bodies = Lane("body", 1, max_queue)
        self.beats = Lane("beat", 1)

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._lookups.run(function, *args, **kwargs)

    async def run_long(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._long.run(function, *args, **kwargs)

    async def run_long_for(self, tenant: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """`run_long`, see `Lane.run_for`."""
        return await self._long.run_for(tenant, function, *args, **kwargs)

    def close(self) -> None:
        for lane in (self._lookups, self._long, self.texts, self.templates, self.bodies, self.beats):
            lane.close()
