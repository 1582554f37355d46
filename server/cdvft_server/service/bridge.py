"""How events cross from the engine thread to the loop: one wake-up for all events of a step."""

import asyncio
from collections import deque
from collections.abc import Callable

from cdvft_server.engine.batch import Event, Token
from cdvft_server.service.signals import Signal

__all__ = ["Bridge", "Inbox"]


class Inbox:
    """One call's events in order. `deliver` is what the engine calls."""

    def __init__(self, bridge: "Bridge") -> None:
        self._bridge = bridge
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._put: Callable[[Event], None] = self._events.put_nowait

    def deliver(self, event: Event) -> None:
        self._bridge.post(self, event)

    def put(self, event: Event) -> None:
        """On the loop."""
        self._put(event)

    async def get(self) -> Event:
        return await self._events.get()

    def divert(self, take: Callable[[Event], None]) -> None:
        """Nobody calls `get` any more: what is here goes to `take`, and so does all that comes."""
        while not self._events.empty():
            take(self._events.get_nowait())
        self._put = take


class Bridge:
    """`ended` is notified after every terminal event: leases were given back."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._posted: deque[tuple[Inbox, Event]] = deque()
        self._woken = False
        self.ended = Signal()

    def post(self, inbox: Inbox, event: Event) -> None:
        """From any thread. Raises RuntimeError when the loop is closed: the engine then cancels the request."""
        self._posted.append((inbox, event))
        if not self._woken:
            self._woken = True
            self._loop.call_soon_threadsafe(self._hand_out)

    def _hand_out(self) -> None:
        self._woken = False  # before the queue is emptied: what is posted from now on wakes the loop again
        ended = False
        while self._posted:
            inbox, event = self._posted.popleft()
            inbox.put(event)
            ended = ended or not isinstance(event, Token)
        if ended:
            self.ended.notify()
