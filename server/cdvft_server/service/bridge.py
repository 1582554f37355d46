"""How events cross from the engine thread to the loop: one wake-up for all events of a step."""

import asyncio
from collections import deque
from collections.abc import Callable

from cdvft_server.engine.batch import Event, Token
from cdvft_server.service.signals import Signal
from cdvft_server.service.turns import LITTLE, SHARE, Turns

__all__ = ["Bridge", "Inbox"]


class Inbox:
    """One call's events in order, for one reader, who hears of them when it is the tenant's turn. `deliver` is what the
    engine calls."""

    def __init__(self, bridge: "Bridge", tenant: str) -> None:
        self._bridge, self._tenant = bridge, tenant
        self._events: deque[Event] = deque()
        self._reader: asyncio.Future[None] | None = None
        self._called = False  # the reader's turn will come
        self._take: Callable[[Event], None] | None = None

    def deliver(self, event: Event) -> None:
        self._bridge.post(self, event)

    def put(self, event: Event) -> None:
        """On the loop."""
        if self._take is not None:
            return self._take(event)
        self._events.append(event)
        if not self._called:
            self._called = True
            cost = LITTLE if isinstance(event, Token) else SHARE
            self._bridge.turns.call(self._tenant, self._wake, cost)

    async def get(self) -> Event:
        while not self._events:
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader
        return self._events.popleft()

    def divert(self, take: Callable[[Event], None]) -> None:
        """Nobody calls `get` any more: what is here goes to `take`, and so does all that comes."""
        while self._events:
            take(self._events.popleft())
        self._take = take

    def _wake(self) -> None:
        self._called = False
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)


class Bridge:
    """`ended` is notified after every terminal event: leases were given back."""

    def __init__(self, loop: asyncio.AbstractEventLoop, turns: Turns) -> None:
        self._loop, self.turns = loop, turns
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
