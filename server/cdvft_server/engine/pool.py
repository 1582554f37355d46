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
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

import torch
from cdvft.heads import HeadSpec
from cdvft.methods.base import Tensors
from cdvft.prepared import PreparedAdapter

from cdvft_server.engine.bank import Bank, Placement
from cdvft_server.engine.hostcache import HostCache

__all__ = ["AdapterPool", "Head", "Lease", "PoolFull", "PoolStats"]

FIRST_ROWS = 8
STEP = 16  # a full bank is resized by a sixteenth of its rows or more: so many row copies for each that is placed
NEARLY = 8  # banks within an eighth of the largest evict their own


class PoolFull(RuntimeError):
    """The budget holds no room for this adapter: everything else in it is in use or pinned."""


@dataclass(frozen=True)
class Head:
    """An adapter's classifier on the device."""

    spec: HeadSpec
    tensors: Tensors


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


@dataclass(eq=False)
class _Resident:
    digest: str
    bank: Bank
    row: int
    head: Head | None
    head_bytes: int
    flops: float
    leases: int = 0
    doomed: bool = False
    pinned: bool = False

    @property
    def placement(self) -> Placement:
        return Placement(self.bank.view, self.row)


class Lease:
    """A promise that the adapter stays on the device. `head` is None for an lm adapter."""

    def __init__(self, pool: "AdapterPool", resident: _Resident) -> None:
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


@dataclass(eq=False)
class _Books:
    """Everything that `_lock` guards."""

    residents: dict[str, _Resident] = field(default_factory=dict)
    banks: dict[Hashable, Bank] = field(default_factory=dict)
    idle: dict[Bank, "OrderedDict[str, _Resident]"] = field(default_factory=dict)  # least recently used first
    head_bytes: int = 0
    leaving: set[str] = field(default_factory=set)  # evicted, on its way to the host
    placed: int = 0
    evicted: int = 0

    @property
    def bytes_used(self) -> int:
        return self.head_bytes + sum(bank.nbytes for bank in self.banks.values())

    def rest(self, resident: _Resident) -> None:
        """It may be evicted from now on, unless somebody uses or wants it; a deleted one goes."""
        if resident.leases:
            return
        if resident.doomed:
            self.drop(resident)
        elif not resident.pinned:
            self.idle[resident.bank][resident.digest] = resident

    def drop(self, resident: _Resident) -> None:
        del self.residents[resident.digest]
        self.idle[resident.bank].pop(resident.digest, None)
        resident.bank.give_row(resident.row)
        self.head_bytes -= resident.head_bytes


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
        self._books = _Books()
        self._numbers = 0

    def acquire(self, digest: str) -> Lease | None:
        """A lease if the adapter is resident; None where it must be placed (first)."""
        with self._lock:
            resident = self._books.residents.get(digest)
            return None if resident is None or resident.doomed else self._lease(resident)

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

    def _lease(self, resident: _Resident) -> Lease:
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
            head = None if prepared.head is None else Head(prepared.head, _moved(prepared.head_tensors, self._device))
        except BaseException:
            with self._lock:
                bank.give_row(row)
            raise
        with self._lock:
            resident = _Resident(prepared.digest, bank, row, head, prepared.head_nbytes, prepared.flops)
            self._books.residents[prepared.digest] = resident
            self._books.head_bytes += prepared.head_nbytes
            self._books.placed += 1
            return self._lease(resident)

    def _make_room(self, bank: Bank, prepared: PreparedAdapter, evict: bool) -> None:
        """Until the bank has a free row and the budget room for the head."""
        while True:
            with self._lock:
                spare = self._budget - self._books.bytes_used - prepared.head_nbytes
                grown = bank.capacity + (0 if bank.free else _smallest_growth(bank))
                missing = bank.bytes_of(grown) - bank.nbytes - spare
                if bank.free and missing <= 0:
                    return
                rows = _growth(bank, spare, prepared.head_nbytes) if missing <= 0 else 0
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

    def _keep(self, bank: Bank, victims: Sequence[_Resident]) -> None:
        """Onto the host, unless they are deleted meanwhile."""
        if self.host.is_on and victims:
            for resident, tables in zip(victims, bank.read_rows([own.row for own in victims]), strict=True):
                self.host.put(_prepared(resident, tables, self.host))
        with self._lock:
            deleted = [own.digest for own in victims if own.digest not in self._books.leaving]
            self._books.leaving.clear()
        for digest in deleted:
            self.host.discard(digest)


def _prepared(resident: _Resident, tables: Mapping[str, Tensors], host: HostCache) -> PreparedAdapter:
    """What was placed, on the CPU; `tables` are its own."""
    bank, head = resident.bank, resident.head
    shared = host.shared_tables(bank.signature)
    return PreparedAdapter(
        digest=resident.digest,
        method=bank.view.method,
        signature=bank.signature,
        tables=tables,
        layouts=bank.view.layouts,
        head=None if head is None else head.spec,
        head_tensors={} if head is None else {name: own.to("cpu") for name, own in head.tensors.items()},
        nbytes=bank.row_bytes,
        head_nbytes=resident.head_bytes,
        shared=bank.read_shared() if shared is None else shared,
        shared_nbytes=bank.shared_bytes,
    )


def _smallest_growth(bank: Bank) -> int:
    """Rows: a new bank starts with row 0 and one more."""
    return 1 if bank.capacity else 2


def _growth(bank: Bank, spare: int, head: int) -> int:
    """Rows to add: doubling, but near the budget half of what is left, so that other banks find some, or all of it
    where half is not worth a copy of the bank. Each row is thought to bring a head of `head` bytes."""
    spare -= bank.bytes_of(1) - bank.row_bytes if bank.capacity == 0 else 0
    fitting = spare // (bank.row_bytes + head)
    share = fitting // 2 if fitting // 2 >= bank.capacity // STEP else fitting
    return min(max(bank.capacity, FIRST_ROWS), max(share, _smallest_growth(bank)))


def _moved(tensors: Mapping[str, torch.Tensor], device: torch.device) -> Tensors:
    """Copies: the pool's bytes are its own, whatever the caller does with theirs."""
    return {name: tensor.to(device, copy=True) for name, tensor in tensors.items()}
