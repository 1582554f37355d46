"""W + dW of hot adapters in the base's dtype, under a byte budget of their own, evicted least recently used first.

Thread-safe. Tensors of an evicted adapter live until the last batch that reads them has run; they are counted until the
last lease on them is given back.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from cdvft.adapter import Adapter
from cdvft.backbone import Backbone
from cdvft.merge import merged_weights
from cdvft.site import Site
from torch import Tensor

from cdvft_server.engine.pool import PoolFull

__all__ = ["MergedLease", "MergedPool", "MergedStats", "MergedUse", "MergedWeights", "merge_adapter", "merged_bytes"]


@dataclass(frozen=True, eq=False)
class MergedWeights:
    """`weights[site.name] [d_out, d_in]`."""

    digest: str
    weights: Mapping[str, Tensor]

    @property
    def nbytes(self) -> int:
        return sum(weight.numel() * weight.element_size() for weight in self.weights.values())


def merged_bytes(sites: Mapping[str, Site], names: tuple[str, ...], dtype: torch.dtype) -> int:
    """What an adapter of these sites takes merged."""
    return sum(sites[name].d_out * sites[name].d_in for name in names) * dtype.itemsize


def merge_adapter(backbone: Backbone, adapter: Adapter) -> MergedWeights:
    """Computed in float64 and rounded once to the base's dtype; any thread. Raises UnsupportedBase."""
    return MergedWeights(adapter.digest, merged_weights(backbone.model, adapter))


@dataclass(frozen=True)
class MergedStats:
    """`bytes_used` never exceeds `budget_bytes`."""

    adapters: int
    bytes_used: int
    budget_bytes: int
    placed: int
    evicted: int


class MergedLease:
    """A promise that the weights stay counted and cached."""

    def __init__(self, pool: "MergedPool", entry: "_Entry") -> None:
        self._pool, self._entry, self._released = pool, entry, False
        self.weights = entry.weights

    def release(self) -> None:
        """Give the promise back; calling it again does nothing."""
        self._pool._release(self)


@dataclass(frozen=True, eq=False)
class MergedUse:
    """How one request uses merged weights: `prompt`: its prompt does; its decode steps do in batches with at least
    `decode_from` such steps of the adapter."""

    lease: MergedLease
    prompt: bool
    decode_from: float


@dataclass(eq=False)
class _Entry:
    weights: MergedWeights
    used: float  # monotonic seconds
    leases: int = 0
    doomed: bool = False


class MergedPool:
    """By digest. `budget_bytes` 0: nothing is ever merged."""

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self._lock = threading.Lock()  # guards what follows
        self._entries: OrderedDict[str, _Entry] = OrderedDict()  # least recently used first
        self._bytes = 0
        self._placed = 0
        self._evicted = 0

    def acquire(self, digest: str) -> MergedLease | None:
        """A lease where the weights are there."""
        with self._lock:
            entry = self._entries.get(digest)
            if entry is None or entry.doomed:
                return None
            self._entries.move_to_end(digest)
            return self._lease(entry)

    def check_room(self, nbytes: int, unused_for: float = 0.0) -> None:
        """Raises PoolFull where weights of this size have no place now; only those may go for them that nobody leases,
        or has leased for `unused_for` seconds."""
        with self._lock:
            self._victims(nbytes, unused_for)

    def again(self, lease: MergedLease) -> MergedLease:
        """One more lease on weights that are leased."""
        with self._lock:
            return self._lease(lease._entry)

    def place(self, weights: MergedWeights, unused_for: float = 0.0) -> MergedLease:
        """Keep the weights and lease them; others go for them as in `check_room`. Raises PoolFull."""
        with self._lock:
            entry = self._entries.get(weights.digest)
            if entry is not None:
                entry.doomed = False
                return self._lease(entry)
            for victim in self._victims(weights.nbytes, unused_for):
                self._drop(victim)
                self._evicted += 1
            entry = self._entries[weights.digest] = _Entry(weights, time.monotonic())
            self._bytes += weights.nbytes
            self._placed += 1
            return self._lease(entry)

    def discard(self, digest: str) -> None:
        """Forget the weights as soon as nobody leases them."""
        with self._lock:
            entry = self._entries.get(digest)
            if entry is not None:
                entry.doomed = True
                if entry.leases == 0:
                    self._drop(entry)

    def stats(self) -> MergedStats:
        with self._lock:
            return MergedStats(len(self._entries), self._bytes, self.budget_bytes, self._placed, self._evicted)

    def _victims(self, nbytes: int, unused_for: float) -> list[_Entry]:
        """All or nothing: nobody is evicted for what does not fit anyway."""
        missing, before = self._bytes + nbytes - self.budget_bytes, time.monotonic() - unused_for
        victims = []
        for entry in self._entries.values():
            if missing > 0 and entry.leases == 0 and entry.used <= before:
                victims.append(entry)
                missing -= entry.weights.nbytes
        if missing > 0:
            raise PoolFull(
                f"no room for {nbytes} bytes of merged weights: there are {self.budget_bytes}, and the others in them "
                "are in use"
            )
        return victims

    def _lease(self, entry: _Entry) -> MergedLease:
        entry.leases += 1
        entry.used = time.monotonic()
        return MergedLease(self, entry)

    def _release(self, lease: MergedLease) -> None:
        with self._lock:
            if lease._released:
                return
            lease._released = True
            lease._entry.leases -= 1
            lease._entry.used = time.monotonic()
            if lease._entry.leases == 0 and lease._entry.doomed:
                self._drop(lease._entry)

    def _drop(self, entry: _Entry) -> None:
        del self._entries[entry.weights.digest]
        self._bytes -= entry.weights.nbytes
