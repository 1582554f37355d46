"""The pool's books: who sits where, who may leave, and how far a bank should grow. Locks nothing, moves no bytes."""

from collections import OrderedDict
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field

import torch
from cdvft.heads import HeadSpec
from cdvft.methods.base import Tensors
from cdvft.prepared import PreparedAdapter

from cdvft_server.engine.bank import Bank, Placement
from cdvft_server.engine.hostcache import HostCache

__all__ = ["STEP", "Books", "Head", "Resident", "growth", "moved", "prepared_of", "smallest_growth"]

FIRST_ROWS = 8
STEP = 16  # a full bank is resized by a sixteenth of its rows or more: so many row copies for each that is placed


@dataclass(frozen=True)
class Head:
    """An adapter's classifier on the device."""

    spec: HeadSpec
    tensors: Tensors


@dataclass(eq=False)
class Resident:
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


@dataclass(eq=False)
class Books:
    """Everything that `_lock` guards."""

    residents: dict[str, Resident] = field(default_factory=dict)
    banks: dict[Hashable, Bank] = field(default_factory=dict)
    idle: dict[Bank, "OrderedDict[str, Resident]"] = field(default_factory=dict)  # least recently used first
    head_bytes: int = 0
    leaving: set[str] = field(default_factory=set)  # evicted, on its way to the host
    placed: int = 0
    evicted: int = 0

    @property
    def bytes_used(self) -> int:
        return self.head_bytes + sum(bank.nbytes for bank in self.banks.values())

    def rest(self, resident: Resident) -> None:
        """It may be evicted from now on, unless somebody uses or wants it; a deleted one goes."""
        if resident.leases:
            return
        if resident.doomed:
            self.drop(resident)
        elif not resident.pinned:
            self.idle[resident.bank][resident.digest] = resident

    def drop(self, resident: Resident) -> None:
        del self.residents[resident.digest]
        self.idle[resident.bank].pop(resident.digest, None)
        resident.bank.give_row(resident.row)
        self.head_bytes -= resident.head_bytes


def prepared_of(resident: Resident, tables: Mapping[str, Tensors], host: HostCache) -> PreparedAdapter:
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
        flops=resident.flops,
    )


def smallest_growth(bank: Bank) -> int:
    """Rows: a new bank starts with row 0 and one more."""
    return 1 if bank.capacity else 2


def growth(bank: Bank, spare: int, head: int) -> int:
    """Rows to add: doubling, but near the budget half of what is left, so that other banks find some, or all of it
    where half is not worth a copy of the bank. Each row is thought to bring a head of `head` bytes."""
    spare -= bank.bytes_of(1) - bank.row_bytes if bank.capacity == 0 else 0
    fitting = spare // (bank.row_bytes + head)
    share = fitting // 2 if fitting // 2 >= bank.capacity // STEP else fitting
    return min(max(bank.capacity, FIRST_ROWS), max(share, smallest_growth(bank)))


def moved(tensors: Mapping[str, torch.Tensor], device: torch.device) -> Tensors:
    """Copies: the pool's bytes are its own, whatever the caller does with theirs."""
    return {name: tensor.to(device, copy=True) for name, tensor in tensors.items()}
