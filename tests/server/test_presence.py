"""Work for a client that may go away: its result, its error, or its end; and what cancels the whole task still does."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
from cdvft_server.presence import Gone, unless_gone


class Client:
    """What `unless_gone` sees of a request."""

    def __init__(self) -> None:
        self.left = asyncio.Event()

    async def receive(self) -> dict[str, str]:
        await self.left.wait()
        return {"type": "http.disconnect"}


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(scenario, 60))


def test_a_result_and_an_error_are_the_works_own() -> None:
    async def scenario() -> None:
        client: Any = Client()

        async def good() -> int:
            await asyncio.sleep(0)
            return 7

        async def bad() -> None:
            await asyncio.sleep(0)
            raise KeyError("a")

        assert await unless_gone(client, good()) == 7
        with pytest.raises(KeyError):
            await unless_gone(client, bad())
        own = asyncio.current_task()
        assert own is not None
        client.left.set()  # too late to matter
        for _ in range(5):
            await asyncio.sleep(0)
        assert own.cancelling() == 0

    run(scenario())


@pytest.mark.parametrize("ending", ["cancelled", "an error", "a result"])
def test_who_leaves_ends_the_work(ending: str) -> None:
    """However it takes that; the task itself is not cancelled."""

    async def scenario() -> None:
        client: Any = Client()
        ends = list[str]()

        async def work() -> int:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                await asyncio.sleep(0)  # what ends it may wait for something
                ends.append(ending)
                if ending == "an error":
                    raise RuntimeError from None
                if ending == "cancelled":
                    raise
            return 7

        asyncio.get_running_loop().call_later(0.001, client.left.set)
        with pytest.raises(Gone):
            await unless_gone(client, work())
        own = asyncio.current_task()
        assert own is not None
        assert (ends, own.cancelling()) == ([ending], 0)
        async with asyncio.timeout(30):  # which counts on that
            await asyncio.sleep(0)

    run(scenario())


def test_a_client_that_has_left_before() -> None:
    async def scenario() -> None:
        client: Any = Client()
        client.left.set()
        with pytest.raises(Gone):
            await unless_gone(client, asyncio.Event().wait())

    run(scenario())


def test_what_cancels_the_task_is_not_the_client() -> None:
    async def scenario() -> None:
        client: Any = Client()
        ended = list[str]()

        async def request() -> None:
            try:
                await unless_gone(client, asyncio.Event().wait())
            except asyncio.CancelledError:
                ended.append("cancelled")
                raise

        task = asyncio.create_task(request())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ended == ["cancelled"]

    run(scenario())
