"""Who waits: one line for each tenant, each in strict order of arrival; the engine thread's own.

The next of all is the head of the line whose tenant has the least counter. Counters only grow, so a heap whose keys may
lag behind finds it: a key that lags is brought up to date when it comes to the top.
"""

from collections import OrderedDict
from collections.abc import Iterator
from heapq import heappop, heappush, heapreplace

from cdvft_server.engine.batch import Sequence
from cdvft_server.engine.counters import Account

__all__ = ["Lines"]


class Lines:
    """Waiting sequences by account. `len` may be asked from any thread."""

    def __init__(self) -> None:
        self._lines: dict[Account, OrderedDict[Sequence, None]] = {}
        self._heap: list[tuple[float, int, Account]] = []  # one entry for each of `_listed`; ties: who came first
        self._listed: set[Account] = set()
        self._entries = self._waiting = 0

    def __len__(self) -> int:
        return self._waiting

    def __iter__(self) -> Iterator[Sequence]:
        return (sequence for line in self._lines.values() for sequence in line)

    def __contains__(self, account: Account) -> bool:
        """Whether a request of this tenant waits."""
        return account in self._lines

    def add(self, account: Account, sequence: Sequence) -> None:
        self._lines.setdefault(account, OrderedDict())[sequence] = None
        self._waiting += 1
        if account not in self._listed:
            self._listed.add(account)
            self._entries += 1
            heappush(self._heap, (account.counter, self._entries, account))

    def first(self) -> Sequence | None:
        """The head of the line of the least counter; None if nobody waits."""
        while self._heap:
            key, number, account = self._heap[0]
            line = self._lines.get(account)
            if line is None:
                heappop(self._heap)
                self._listed.remove(account)
            elif key < account.counter:
                heapreplace(self._heap, (account.counter, number, account))
            else:
                return next(iter(line))
        return None

    def head(self, account: Account) -> Sequence | None:
        line = self._lines.get(account)
        return None if line is None else next(iter(line))

    def remove(self, account: Account, sequence: Sequence) -> bool:
        """Whether it was there."""
        line = self._lines.get(account)
        if line is None or sequence not in line:
            return False
        del line[sequence]
        self._waiting -= 1
        if not line:
            del self._lines[account]
        return True
