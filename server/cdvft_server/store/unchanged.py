"""What was read of the database, for as long as nobody writes to it: no answer is older than the last write."""

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

__all__ = ["Unchanged"]

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

SIZE = 16_384  # values


class Unchanged(Generic[K, V]):
    """For one thread. `changes` gives a number that is another after every write, by whomever; None where that cannot
    be told at once: then nothing is kept.

        mark = unchanged.mark()
        value = unchanged.get(key)  # at once after it
        if value is None:
            unchanged.put(key, value := ask_the_database(), mark)

    So a value is only given while the number is still the one from before the question.
    """

    def __init__(self, changes: Callable[[], int | None]) -> None:
        self._changes = changes
        self._mark: int | None = None
        self._values: dict[K, V] = {}

    def mark(self) -> int | None:
        now = self._changes()
        if now != self._mark:
            self._mark = now
            self._values.clear()
        return now

    def get(self, key: K) -> V | None:
        return self._values.get(key)

    def put(self, key: K, value: V, mark: int | None) -> None:
        if mark is not None and mark == self._mark and len(self._values) < SIZE:
            self._values[key] = value
