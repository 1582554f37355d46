"""What the database said last, for the time it does not answer. Knows neither names nor keys."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

__all__ = ["Asked", "LastKnown"]

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


@dataclass(frozen=True)
class Asked:
    """When a question was put to the database, and how much had been forgotten then."""

    at: float
    forgotten: int


class LastKnown(Generic[K, V]):
    """Values by key, each for `seconds` from when it was asked for, at most `size` of them. Any thread.

    An answer to a question that was put before something was forgotten is not kept: it may be what was forgotten.
    """

    def __init__(self, seconds: float, size: int = 16_384, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds, self._size, self._clock = seconds, size, clock
        self._lock = threading.Lock()
        self._values: OrderedDict[K, tuple[float, V]] = OrderedDict()  # the longest known first
        self._forgotten = 0

    def ask(self) -> Asked:
        """Before the database is asked; `put` wants it with the answer."""
        with self._lock:
            return Asked(self._clock(), self._forgotten)

    def put(self, key: K, value: V, asked: Asked) -> None:
        with self._lock:
            if asked.forgotten != self._forgotten:
                return
            self._values[key] = asked.at, value
            self._values.move_to_end(key)
            while len(self._values) > self._size or self._is_over(next(iter(self._values.values()))[0]):
                self._values.popitem(last=False)
                if not self._values:
                    break

    def get(self, key: K) -> V | None:
        """None where it was never asked for, or too long ago."""
        with self._lock:
            at, value = self._values.get(key, (None, None))
            return None if at is None or self._is_over(at) else value

    def forget(self, which: Callable[[K, V], bool]) -> None:
        with self._lock:
            self._forgotten += 1
            for key in [key for key, (_, value) in self._values.items() if which(key, value)]:
                del self._values[key]

    def _is_over(self, at: float) -> bool:
        return self._clock() - at > self._seconds
