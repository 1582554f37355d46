"""Prepared adapters in the machine's memory, behind the device: least recently used first out, within a byte budget.

Thread-safe. It knows neither the device nor the store: the pool puts in what it evicts, and takes out what it places.
"""

import threading
from collections import OrderedDict
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace

from cdvft.methods.base import Tensors
from cdvft.prepared import PreparedAdapter, storages

__all__ = ["HostCache", "HostStats"]


@dataclass(frozen=True)
class HostStats:
    """`bytes_used` never exceeds `budget_bytes`; what adapters of one signature share is counted once."""

    adapters: int
    bytes_used: int
    budget_bytes: int
    evicted: int


@dataclass(frozen=True)
class _Kept:
    prepared: PreparedAdapter
    nbytes: int  # without what it shares


@dataclass
class _Shared:
    tables: Mapping[str, Tensors]
    nbytes: int
    users: int = 0


class HostCache:
    """`budget_bytes` 0 keeps nothing. Tensors that come in are kept, not copied: nobody may write to them."""

    def __init__(self, budget_bytes: int) -> None:
        self._budget = budget_bytes
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, _Kept] = OrderedDict()  # by digest, least recently used first
        self._shared: dict[Hashable, _Shared] = {}
        self._used = 0
        self._evicted = 0

    @property
    def is_on(self) -> bool:
        return self._budget > 0

    def put(self, prepared: PreparedAdapter) -> None:
        """Keep it as the most recently used; nothing happens where it alone is larger than the budget."""
        with self._lock:
            if prepared.digest in self._kept:
                self._kept.move_to_end(prepared.digest)
                return
            own = _own_bytes(prepared)
            if own + prepared.shared_nbytes > self._budget:
                return
            while self._used + own + self._more_shared(prepared) > self._budget:
                self._drop(next(iter(self._kept)))
                self._evicted += 1
            self._used += own + self._more_shared(prepared)
            shared = self._shared.setdefault(prepared.signature, _Shared(prepared.shared, prepared.shared_nbytes))
            shared.users += 1
            self._kept[prepared.digest] = _Kept(replace(prepared, shared=shared.tables), own)

    def get(self, digest: str) -> PreparedAdapter | None:
        """It stays here, as the most recently used."""
        with self._lock:
            found = self._kept.get(digest)
            if found is not None:
                self._kept.move_to_end(digest)
            return None if found is None else found.prepared

    def discard(self, digest: str) -> None:
        """Forget it; that is no eviction."""
        with self._lock:
            if digest in self._kept:
                self._drop(digest)

    def shared_tables(self, signature: Hashable) -> Mapping[str, Tensors] | None:
        """What the adapters of this signature share, if there are any here."""
        with self._lock:
            shared = self._shared.get(signature)
            return None if shared is None else shared.tables

    def __contains__(self, digest: str) -> bool:
        with self._lock:
            return digest in self._kept

    def stats(self) -> HostStats:
        with self._lock:
            return HostStats(len(self._kept), self._used, self._budget, self._evicted)

    def _more_shared(self, prepared: PreparedAdapter) -> int:
        return 0 if prepared.signature in self._shared else prepared.shared_nbytes

    def _drop(self, digest: str) -> None:
        kept = self._kept.pop(digest)
        self._used -= kept.nbytes
        signature = kept.prepared.signature
        shared = self._shared[signature]
        shared.users -= 1
        if shared.users == 0:
            del self._shared[signature]
            self._used -= shared.nbytes


def _own_bytes(prepared: PreparedAdapter) -> int:
    """Of whole storages: a table may be a part of a larger one."""
    return sum(storages(prepared.tables).values()) + prepared.head_nbytes
