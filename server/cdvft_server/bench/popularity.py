"""Which adapters the requests of a batch name: few that all want, or each its own. Knows no adapters, only numbers."""

from collections.abc import Iterator
from itertools import accumulate
from random import Random

from cdvft_server.bench.settings import Popularity

__all__ = ["EXPONENT", "Draws"]

EXPONENT = 1.0  # of zipf: the k-th adapter is named 1/k as often as the first


class Draws:
    """Seeded draws from adapters `0 .. adapters - 1`, a batch of `requests` at a time.

    `uniform`: each request any adapter; `zipf`: adapter k with a weight of 1 / (k + 1) ** EXPONENT; `identical`: one
    adapter for the whole batch; `distinct`: as many different ones as there are. With `distinct` K, K adapters are
    drawn for the batch by popularity, and the requests share them evenly.
    """

    def __init__(
        self, popularity: Popularity, adapters: int, requests: int, distinct: int | None = None, seed: int = 0
    ) -> None:
        self.popularity, self.adapters, self.requests = popularity, adapters, requests
        self.distinct = None if distinct is None else min(distinct, adapters, requests)
        self._random = Random(seed)
        self._population = range(adapters)
        self._sums = list(accumulate((k + 1) ** -EXPONENT for k in range(adapters))) if popularity == "zipf" else None

    def batch(self) -> list[int]:
        """An adapter's number for each request."""
        if self.popularity == "identical":
            return [self._random.randrange(self.adapters)] * self.requests
        count = min(self.requests, self.adapters) if self.popularity == "distinct" else self.distinct
        if count is None:
            return self._random.choices(self._population, cum_weights=self._sums, k=self.requests)
        chosen = self._different(count)
        batch = [chosen[k % count] for k in range(self.requests)]
        self._random.shuffle(batch)
        return batch

    def _different(self, count: int) -> list[int]:
        """By popularity, without replacement."""
        if self._sums is None:
            return self._random.sample(self._population, count)
        found: dict[int, None] = {}
        for number in self._weighted():
            found[number] = None
            if len(found) == count:
                break
        return list(found)

    def _weighted(self) -> Iterator[int]:
        while True:
            yield from self._random.choices(self._population, cum_weights=self._sums, k=self.requests)
