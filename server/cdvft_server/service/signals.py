"""Waiting on the loop for something to change."""

import asyncio
from collections.abc import Callable
from contextlib import suppress

__all__ = ["Signal"]


class Signal:
    """Wakes everybody who waits; for the loop's thread only."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def notify(self) -> None:
        self._event.set()
        self._event = asyncio.Event()

    async def wait(self, seconds: float) -> None:
        """Until the next `notify`, or until this time is over."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._event.wait()

    async def wait_for(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Until the condition holds, looked at after each `notify`; False if it does not within this time."""
        try:
            async with asyncio.timeout(seconds):
                while not condition():
                    await self._event.wait()
        except TimeoutError:
            return condition()
        return True
