"""Whose work the event loop does next: what each tenant has for it begins a little at a time, pass by pass.

A request costs the loop about a millisecond in several pieces. Where dozens of one tenant's come or end together, as
the requests of one batch do, their pieces would all stand in the loop's line before the next one of another tenant.

And while the engine hurries for tenants that use little, what others have for the loop begins more slowly: the loop's
Python and the engine's share one lock, so a short batch beside a busy loop takes several times as long.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Collection

__all__ = ["LITTLE", "SHARE", "Turns"]

SHARE = 1.0  # of a pass of the loop, for each tenant: the beginning or the end of one request
LITTLE = SHARE / 8  # what a token that is sent on costs beside that
PASS = 0.001  # seconds: longer than most
GAP = 0.008  # seconds from one share of others to the next while the engine hurries
SLOWED = 1 / 8  # of the time, at most, that work waits for such a gap
MOST_SLOWED = 0.25  # seconds of that, after a time without

Work = tuple[Callable[[], None], float]


class Turns:
    """Within a tenant in order. `hurried`: for whom the engine hurries. `fair` False: everything at once. For the
    loop's thread only."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, hurried: Callable[[], Collection[str]], *, fair: bool = True
    ) -> None:
        self._loop, self._hurried, self._fair = loop, hurried, fair
        self._lines: dict[str, deque[Work]] = {}  # of tenants that wait for a later pass
        self._left: dict[str, float] = {}  # of each tenant's share of this one
        self._pass_ends = 0.0  # at the latest; while nobody waits passes are not counted, which would cost some
        self._next: asyncio.Handle | None = None  # the next pass, while somebody waits
        self._in_gap = False  # it comes at the end of one
        self._gap_ends = self._seen = loop.time()  # `_seen`: when `_may_slow` was brought up to date
        self._may_slow = MOST_SLOWED  # seconds

    async def mine(self, tenant: str) -> None:
        """Wait for the turn to begin a request."""
        turn: asyncio.Future[None] = self._loop.create_future()
        self.call(tenant, lambda: None if turn.done() else turn.set_result(None))
        if not turn.done():
            await turn

    def call(self, tenant: str, function: Callable[[], None], cost: float = SHARE) -> None:
        """Now if the tenant has some of its share of this pass left, else in a later one."""
        if not self._fair:
            return function()
        if self._next is None and self._loop.time() >= self._pass_ends:
            self._begin_pass()
        line = self._lines.setdefault(tenant, deque())
        line.append((function, cost))
        self._serve(tenant, line)
        if line and (self._next is None or (self._in_gap and not self._hurried())):
            self._come_back(in_gap=False)

    def _pass(self) -> None:
        """The next pass of the loop has come, or the gap is over."""
        self._next = None
        self._begin_pass()
        for tenant, line in list(self._lines.items()):
            self._serve(tenant, line)
        if self._lines:
            self._come_back(in_gap=not self._left)

    def _begin_pass(self) -> None:
        self._left.clear()
        self._pass_ends = self._loop.time() + PASS

    def _come_back(self, *, in_gap: bool) -> None:
        if self._next is not None:
            self._next.cancel()
        if in_gap:  # all that is there waits for its end
            self._may_slow -= self._gap_ends - self._seen
            self._next = self._loop.call_at(self._gap_ends, self._pass)
        else:
            self._next = self._loop.call_soon(self._pass)
        self._in_gap = in_gap

    def _serve(self, tenant: str, line: deque[Work]) -> None:
        first = self._hurried()
        if tenant in first:
            self._left.pop(tenant, None)  # no pass is shared in a hurry
            while line:
                line.popleft()[0]()
        elif not (first and self._is_slowed()):
            left = self._left.get(tenant, SHARE)
            while line and left > 0:
                function, cost = line.popleft()
                left -= cost
                function()
            self._left[tenant] = left
        if not line:
            self._lines.pop(tenant, None)

    def _is_slowed(self) -> bool:
        """Whether work waits for the end of the gap; where it does not, the next gap begins."""
        now = self._loop.time()
        self._may_slow = min(self._may_slow + (now - self._seen) * SLOWED, MOST_SLOWED)
        self._seen = now
        if now < self._gap_ends and self._may_slow > 0:
            return True
        self._gap_ends = now + GAP
        return False
