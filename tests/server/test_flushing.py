"""What is counted in memory is written again and again, and an outage is told once."""

import asyncio
import logging

import pytest
from cdvft_server.service.flushing import Flushing

SECONDS = 60


def test_an_outage_is_told_once_and_so_is_its_end(caplog: pytest.LogCaptureFixture) -> None:
    calls = 0
    done = asyncio.Event()

    async def flush() -> None:
        nonlocal calls
        calls += 1
        if calls in (2, 3, 4, 7):
            raise OSError("away")
        if calls >= 8:
            done.set()

    async def run() -> None:
        flushing = Flushing("usage", 0, flush)
        flushing.start()
        await asyncio.wait_for(done.wait(), SECONDS)
        await flushing.close()

    with caplog.at_level(logging.WARNING):
        asyncio.run(run())
    told = ["usage cannot be written, kept in memory: away", "usage can be written again"]
    assert caplog.messages == told * 2


def test_the_last_write_is_tried_and_raises_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async def flush() -> None:
        raise OSError("away")

    asyncio.run(Flushing("hits", 0, flush).close())
    assert caplog.messages == ["hits cannot be written, kept in memory: away"]
