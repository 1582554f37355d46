"""Lanes of worker threads: whoever gives up waiting frees no thread, and gets nobody else's."""

import asyncio
import threading

import pytest
from cdvft_server.errors import ApiError
from cdvft_server.service.workers import Lane, Workers

WAIT = 60.0  # seconds: a bound for a hang


class Blocking:
    """Calls that hold their thread until `end` is set; counts how many hold one at once."""

    def __init__(self) -> None:
        self.begun, self.most, self._now = 0, 0, 0
        self.end, self._lock = threading.Event(), threading.Lock()

    def __call__(self) -> None:
        with self._lock:
            self.begun += 1
            self._now += 1
            self.most = max(self.most, self._now)
        assert self.end.wait(WAIT)
        with self._lock:
            self._now -= 1


async def until(condition: object) -> None:
    async with asyncio.timeout(WAIT):
        while not condition():  # type: ignore[operator]
            await asyncio.sleep(0.001)


def test_abandoned_calls_keep_their_turns_until_their_threads_have_ended() -> None:
    async def scenario() -> None:
        workers, blocking = Workers(renderers=2, count=4), Blocking()
        try:
            tasks = [asyncio.create_task(workers.run_long(blocking)) for _ in range(6)]
            await until(lambda: blocking.begun == 2)
            for task in tasks:
                task.cancel()
            assert all(isinstance(e, asyncio.CancelledError) for e in await asyncio.gather(*tasks, return_exceptions=1))
            late = asyncio.create_task(workers.run_long(blocking))
            for lane in (workers.run, workers.texts.run, workers.templates.run, workers.bodies.run):
                assert await asyncio.wait_for(lane(lambda: 7), WAIT) == 7  # every other lane is free
            assert (blocking.begun, late.done()) == (2, False)  # both threads are held, and those who waited are gone
            blocking.end.set()
            await late
            assert (blocking.begun, blocking.most) == (3, 2)
        finally:
            blocking.end.set()
            workers.close()

    asyncio.run(scenario())


def test_a_full_line_turns_calls_away() -> None:
    async def scenario() -> None:
        workers, blocking = Workers(renderers=1, count=2, max_queue=2), Blocking()
        try:
            tasks = [asyncio.create_task(workers.run_long(blocking)) for _ in range(3)]
            await until(lambda: blocking.begun == 1)
            with pytest.raises(ApiError, match="2 calls wait for a long thread already") as refused:
                await workers.run_long(blocking)
            assert (refused.value.code, refused.value.headers) == ("overloaded", {"retry-after": "1"})
            assert await workers.texts.run(lambda: 7) == 7
            tasks[2].cancel()
            await asyncio.gather(tasks[2], return_exceptions=True)
            tasks[2] = asyncio.create_task(workers.run_long(blocking))  # who gives up leaves the line
            blocking.end.set()
            await asyncio.gather(*tasks)
            assert blocking.begun == 3
        finally:
            blocking.end.set()
            workers.close()

    asyncio.run(scenario())


def test_one_tenants_calls_wait_behind_each_other_not_others_behind_them() -> None:
    async def scenario() -> None:
        lane, blocking, order = Lane("test", 1, 3), Blocking(), list[str]()

        def call(tenant: str) -> None:
            order.append(tenant)
            blocking()

        try:
            tasks = [asyncio.create_task(lane.run_for("alice", call, "alice")) for _ in range(4)]
            await until(lambda: blocking.begun == 1)
            with pytest.raises(ApiError, match="3 calls wait for a test thread already"):
                await lane.run_for("alice", call, "alice")
            tasks += [asyncio.create_task(lane.run_for("bob", call, "bob")) for _ in range(2)]
            await asyncio.sleep(0)  # they are in line
            gone = tasks.pop(3)
            gone.cancel()
            await asyncio.gather(gone, return_exceptions=True)
            blocking.end.set()
            await asyncio.gather(*tasks)
            assert order == ["alice", "bob", "alice", "bob", "alice"]
            assert not lane._own
        finally:
            blocking.end.set()
            lane.close()

    asyncio.run(scenario())


def test_results_errors_and_the_end() -> None:
    async def scenario() -> None:
        lane = Lane("test", 1)
        assert await lane.run(divmod, 7, 2) == (3, 1)
        for _ in range(3):  # an error gives the turn back
            with pytest.raises(ZeroDivisionError):
                await lane.run(divmod, 1, 0)
        lane.close()
        for _ in range(3):
            with pytest.raises(RuntimeError, match="shutdown"):
                await asyncio.wait_for(lane.run(int), WAIT)

    asyncio.run(scenario())
