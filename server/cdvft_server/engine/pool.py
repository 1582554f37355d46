"""Which adapter sits in which bank row: leases, reference counts, a byte budget, growth, eviction of idle adapters.

Thread-safe. `_lock` guards the books and is held for microseconds only: the engine thread takes it for every batch.
`_placing` lets one thread at a time move bytes (new rows, growing, shrinking) while batches go on reading.

What is evicted goes to the host cache, what is placed leaves it: an adapter is in one of the two, and on a CPU no bytes
are there twice.

A row is overwritten only when nobody holds a lease on it, and the engine releases a lease only after the last batch
that reads the row has run. Row 0 is never handed out.
"""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from cdvft.prepared import PreparedAdapter

from cdvft_server.engine.bank import Bank, Placement
from cdvft_server.engine.books import STEP, Books, Head, Resident, growth, moved, prepared_of, smallest_growth
from cdvft_server.engine.hostcache import HostCache

__all__ = ["AdapterPool", "Head", "Lease", "PoolFull", "PoolStats"]

NEARLY = 8  # banks within an eighth of the largest evict their own


class PoolFull(RuntimeError):
    """The budget holds no room for this adapter: everything else in it is in use or pinned."""


@dataclass(frozen=True)
class PoolStats:
    """`bytes_used` counts whole banks (free rows and row 0 too) and heads; it never exceeds `budget_bytes`."""

    adapters: int
    leased: int
    banks: int
    rows: int
    bytes_used: int
    budget_bytes: int
    placed: int
    evicted: int
    pinned: int


class Lease:
    """A promise that the adapter stays on the device. `head` is None for an lm adapter."""

    def __init__(self, pool: "AdapterPool", resident: Resident) -> None:
        self._pool, self._resident = pool, resident
        self.digest = resident.digest
        self.head = resident.head
        self.method = resident.bank.view.method.name
        self.flops = resident.flops  # of one token
        self.sites = tuple(resident.bank.view.tables)  # names
        self.claimed = False  # by the engine: one lease, one request
        self.released = False

    def release(self) -> None:
        """Give the promise back; calling it again does nothing."""
        self._pool._release(self)


class AdapterPool:
    """All adapters on one device. `budget_bytes` bounds banks and heads together.

    Bytes are made for a new adapter by, in this order: growing its bank (doubling), taking back free rows of banks,
    evicting the least recently used idle adapter: of its own bank, unless another is larger by an eighth and has idle
    ones, which then gives up an eighth of its rows. While a bank is resized, one site's tables exist twice.
    """

    def __init__(self, device: torch.device | str, budget_bytes: int, host: HostCache | None = None) -> None:
        self._device = torch.device(device)
        self._budget = budget_bytes
        self.host = host or HostCache(0)
        self._lock = threading.Lock()
        self._placing = threading.Lock()
        self._books = Books()
        self._numbers = 0

    def acquire(self, digest: str) -> Lease | None:
        """A lease if the adapter is resident; None where it must be placed (first)."""
        with self._lock:
            resident = self._books.residents.get(digest)
            return None if resident is None or resident.doomed else self._lease(resident)

    def again(self, lease: Lease) -> Lease:
        """One more lease on an adapter that is leased, even if it is to be forgotten after that."""
        with self._lock:
            return self._lease(lease._resident)

    def place(self, prepared: PreparedAdapter, *, evict: bool = True) -> Lease:
        """Make the adapter resident and lease it, without `evict` only where there is room. Raises PoolFull."""
        with self._placing:
            with self._lock:
                resident = self._books.residents.get(prepared.digest)
                if resident is not None:
                    resident.doomed = False
                    return self._lease(resident)
            bank = self._bank_of(prepared)
            try:
                self._make_room(bank, prepared, evict)
                lease = self._write(bank, prepared)
            finally:
                self._remove_if_empty(bank)
            self.host.discard(prepared.digest)
            return lease

    def discard(self, digest: str) -> None:
        """Forget the adapter as soon as nobody leases it, on the host too; from now on it counts as not resident."""
        with self._lock:
            self._books.leaving.discard(digest)
            resident = self._books.residents.get(digest)
            if resident is not None:
                resident.doomed, resident.pinned = True, False
                self._books.rest(resident)
        self.host.discard(digest)

    def pin(self, digest: str) -> bool:
        """Never evict it from now on; False where it is not resident."""
        with self._lock:
            resident = self._books.residents.get(digest)
            if resident is None or resident.doomed:
                return False
            resident.pinned = True
            self._books.idle[resident.bank].pop(digest, None)
            return True

    def unpin(self, digest: str) -> None:
        with self._lock:
            resident = self._books.residents.get(digest)
            if resident is not None and resident.pinned:
                resident.pinned = False
                self._books.rest(resident)

    def is_resident(self, digest: str) -> bool:
        with self._lock:
            resident = self._books.residents.get(digest)
            return resident is not None and not resident.doomed

    def placements(self, leases: Sequence[Lease | None]) -> list[Placement | None]:
        """Where the leased adapters sit now: good for one batch, as long as the leases are held."""
        with self._lock:
            return [None if lease is None else lease._resident.placement for lease in leases]

    def stats(self) -> PoolStats:
        with self._lock:
            books = self._books
            return PoolStats(
                adapters=len(books.residents),
                leased=sum(r.leases > 0 for r in books.residents.values()),
                banks=len(books.banks),
                rows=sum(bank.capacity for bank in books.banks.values()),
                bytes_used=books.bytes_used,
                budget_bytes=self._budget,
                placed=books.placed,
                evicted=books.evicted,
                pinned=sum(r.pinned for r in books.residents.values()),
            )

    def _lease(self, resident: Resident) -> Lease:
        resident.leases += 1
        self._books.idle[resident.bank].pop(resident.digest, None)
        return Lease(self, resident)

    def _release(self, lease: Lease) -> None:
        with self._lock:
            if lease.released:
                return
            lease.released = True
            resident = lease._resident
            resident.leases -= 1
            self._books.rest(resident)

    def _bank_of(self, prepared: PreparedAdapter) -> Bank:
        with self._lock:
            bank = self._books.banks.get(prepared.signature)
            if bank is None:
                self._numbers += 1
                bank = Bank(self._numbers, prepared, self._device)
                self._books.banks[prepared.signature] = bank
                self._books.idle[bank] = OrderedDict()
            return bank

    def _remove_if_empty(self, bank: Bank) -> None:
        with self._lock:
            if bank.capacity == 0:
                self._books.banks = {key: own for key, own in self._books.banks.items() if own is not bank}
                self._books.idle.pop(bank, None)

    def _write(self, bank: Bank, prepared: PreparedAdapter) -> Lease:
        with self._lock:
            row = bank.take_row()
        try:
            bank.write_row(row, prepared.tables)
            head = None if prepared.head is None else Head(prepared.head, moved(prepared.head_tensors, self._device))
        except BaseException:
            with self._lock:
                bank.give_row(row)
            raise
        with self._lock:
            resident = Resident(prepared.digest, bank, row, head, prepared.head_nbytes, prepared.flops)
            self._books.residents[prepared.digest] = resident
            self._books.head_bytes += prepared.head_nbytes
            self._books.placed += 1
            return self._lease(resident)

    def _make_room(self, bank: Bank, prepared: PreparedAdapter, evict: bool) -> None:
        """Until the bank has a free row and the budget room for the head."""
        while True:
            with self._lock:
                spare = self._budget - self._books.bytes_used - prepared.head_nbytes
                grown = bank.capacity + (0 if bank.free else smallest_growth(bank))
                missing = bank.bytes_of(grown) - bank.nbytes - spare
                if bank.free and missing <= 0:
                    return
                rows = growth(bank, spare, prepared.head_nbytes) if missing <= 0 else 0
            if rows:
                if not (evict and rows < bank.capacity // STEP and self._evict(bank, 1)):
                    bank.resize_tables(bank.capacity + rows)
                    with self._lock:
                        bank.add_rows(rows)
            elif not (
                self._shrink_some(bank, missing, STEP)
                or (evict and self._evict_some(bank))
                or self._shrink_some(bank, missing)
            ):
                raise PoolFull(
                    f"no room for adapter {prepared.digest} of {prepared.nbytes + prepared.head_nbytes} bytes: "
                    f"the adapter memory has {self._budget} bytes and every other adapter in it is in use or pinned"
                )

    def _shrink_some(self, bank: Bank, missing: int, step: int | None = None) -> bool:
        """Take back one bank's free rows, those worth most, if free rows alone make the missing bytes; with `step` only
        where they are that part of a bank, which is then worth copying."""
        with self._lock:
            slack = {own: self._slack_rows(own, bank) for own in self._books.banks.values()}
            left = {
                own: own.capacity - (rows if step is None or rows >= own.capacity // step else 0)
                for own, rows in slack.items()
            }
            freed = {own: own.nbytes - own.bytes_of(rows) for own, rows in left.items()}
            best = max(freed, key=lambda own: freed[own])
        if sum(freed.values()) < missing:
            return False
        self._shrink(best, left[best])
        return True

    def _slack_rows(self, bank: Bank, wanted: Bank) -> int:
        if bank is wanted:  # it keeps one free row
            return max(len(bank.free) - 1, 0)
        return len(bank.free) if bank.occupied else bank.capacity

    def _shrink(self, bank: Bank, capacity: int) -> None:
        with self._lock:
            bank.cut_rows(capacity)
            high = [r for r in self._books.residents.values() if r.bank is bank and r.row >= capacity]
            moves = [(resident, bank.take_row()) for resident in high]
        for resident, row in moves:
            bank.copy_row(resident.row, row)
        with self._lock:
            for resident, row in moves:
                if self._books.residents.get(resident.digest) is resident:
                    resident.row = row
                else:
                    bank.give_row(row)
        bank.resize_tables(capacity)
        self._remove_if_empty(bank)

    def _evict_some(self, bank: Bank) -> bool:
        """One of the bank's own, or an eighth of a bank that is clearly larger, so that shares even out."""
        with self._lock:
            candidates = [own for own, idle in self._books.idle.items() if idle]
            if not candidates:
                return False
            largest = max(candidates, key=lambda own: own.nbytes)
            own_turn = bool(self._books.idle[bank]) and bank.nbytes >= largest.nbytes - largest.nbytes // NEARLY
        return self._evict(bank, 1) if own_turn else self._evict(largest, max(1, largest.occupied // NEARLY))

    def _evict(self, bank: Bank, count: int) -> bool:
        """Up to so many idle adapters of this bank, least recently used first; False where there was none."""
        with self._lock:
            victims = list(islice(self._books.idle[bank].values(), count))
            for resident in victims:
                self._books.drop(resident)
            self._books.evicted += len(victims)
            self._books.leaving.update(resident.digest for resident in victims)
        self._keep(bank, victims)  # their rows stay as they are: who writes to rows holds `_placing`
        return bool(victims)

    def _keep(self, bank: Bank, victims: Sequence[Resident]) -> None:
        """Onto the host, unless they are deleted meanwhile."""
        if self.host.is_on and victims:
            for resident, tables in zip(victims, bank.read_rows([own.row for own in victims]), strict=True):
                self.host.put(prepared_of(resident, tables, self.host))
        with self._lock:
            deleted = [own.digest for own in victims if own.digest not in self._books.leaving]
            self._books.leaving.clear()
        for digest in deleted:
            self.host.discard(digest)
