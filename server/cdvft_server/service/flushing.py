"""Writing what was counted in memory, again and again, until the end."""

import asyncio
from collections.abc import Awaitable, Callable

__all__ = ["Flushing"]


class Flushing:
    """Calls `flush` every `seconds` from `start` on, and once more at `close`. `flush` raises nothing."""

    def __init__(self, name: str, seconds: float, flush: Callable[[], Awaitable[None]]) -> None:
        self._name, self._seconds, self._flush = name, seconds, flush
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._forever(), name=f"cdvft-{self._name}")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._flush()

    async def _forever(self) -> None:
        while True:
            await asyncio.sleep(self._seconds)
            await self._flush()
