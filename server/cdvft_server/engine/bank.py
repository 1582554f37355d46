"""Device tables `[rows, ...]` for all resident adapters of one method and shape; row 0 is zeros, the base."""

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from cdvft.methods.base import Method, Tensors
from cdvft.prepared import PreparedAdapter
from torch import Tensor

__all__ = ["Bank", "BankView", "Placement"]


@dataclass(frozen=True, eq=False)
class BankView:
    """A bank as a batch reads it. Resizing makes new tables, so that the rows a batch uses stay as they are."""

    number: int
    method: Method[Any]
    tables: Mapping[str, Tensors]
    layouts: Mapping[str, Any]
    shared: Mapping[str, Tensors] = field(default_factory=dict)
    adders: dict[Any, Any] = field(default_factory=dict, init=False)  # of these tables: see BankSlice


@dataclass(frozen=True, eq=False)
class Placement:
    """Where one adapter sits."""

    bank: BankView
    row: int


class Bank:
    """Rows and their tables. It locks nothing: the pool says who may call what, and when.

    `capacity` counts row 0; `free` is a heap, so that occupied rows stay low and the bank can shrink.
    """

    def __init__(self, number: int, like: PreparedAdapter, device: torch.device) -> None:
        self.device = device
        self.signature = like.signature
        self.row_bytes = like.nbytes
        self.shared_bytes = like.shared_nbytes
        self.capacity = 0
        self.free: list[int] = []
        empty = {
            site: {name: table.new_empty((0, *table.shape), device=device) for name, table in own.items()}
            for site, own in like.tables.items()
        }
        self.view = BankView(number, like.method, empty, like.layouts)
        self._like_shared: Mapping[str, Tensors] | None = like.shared  # until the first row is made

    @property
    def nbytes(self) -> int:
        return self.bytes_of(self.capacity)

    def bytes_of(self, rows: int) -> int:
        """What a bank of this kind takes with so many rows; nothing without any."""
        return rows * self.row_bytes + (self.shared_bytes if rows else 0)

    @property
    def occupied(self) -> int:
        """Rows with an adapter in them."""
        return max(self.capacity - 1, 0) - len(self.free)

    def take_row(self) -> int:
        return heapq.heappop(self.free)

    def give_row(self, row: int) -> None:
        """A row beyond the capacity belongs to tables that are about to go: nothing to keep."""
        if row < self.capacity:
            heapq.heappush(self.free, row)

    def add_rows(self, count: int) -> None:
        """Raise the capacity; `resize_tables` must have made the rows."""
        heapq.heapify(self.free)
        for row in range(max(self.capacity, 1), self.capacity + count):
            heapq.heappush(self.free, row)
        self.capacity += count

    def cut_rows(self, capacity: int) -> None:
        """Lower the capacity; adapters above it must move (`copy_row`) before `resize_tables`."""
        self.free = [row for row in self.free if row < capacity]
        heapq.heapify(self.free)
        self.capacity = capacity

    def resize_tables(self, capacity: int) -> None:
        """Site by site, so that old and new tables of one site only exist together."""
        if self._like_shared is not None:
            self.view = replace(self.view, shared=_moved_once(self._like_shared, self.device))
            self._like_shared = None
        for site, own in self.view.tables.items():
            resized = {name: _resized(table, capacity) for name, table in own.items()}
            self.view = replace(self.view, tables={**self.view.tables, site: resized})

    def copy_row(self, source: int, target: int) -> None:
        for own in self.view.tables.values():
            for table in own.values():
                table[target].copy_(table[source])

    def read_rows(self, rows: Sequence[int]) -> list[dict[str, dict[str, Tensor]]]:
        """Of each row copies on the CPU, `[site][name]` without the row axis; each table crosses once for all rows."""
        taken: list[dict[str, dict[str, Tensor]]] = [{site: {} for site in self.view.tables} for _ in rows]
        for site, own in self.view.tables.items():
            for name, table in own.items():
                for tables, copy in zip(taken, _rows_on_cpu(table, rows), strict=True):
                    tables[site][name] = copy
        return taken

    def read_shared(self) -> dict[str, dict[str, Tensor]]:
        """Copies on the CPU."""
        return _moved_once(self.view.shared, torch.device("cpu"))

    def write_row(self, row: int, tables: Mapping[str, Tensors]) -> None:
        for site, own in self.view.tables.items():
            for name, table in own.items():
                table[row].copy_(tables[site][name])


def _moved_once(shared: Mapping[str, Tensors], device: torch.device) -> dict[str, dict[str, Tensor]]:
    """Copies on the device; what were views of one storage are views of one again."""
    storages: dict[int, Tensor] = {}

    def moved(table: Tensor) -> Tensor:
        storage = table.untyped_storage()
        if storage.data_ptr() not in storages:
            whole = table.new_empty(0).set_(storage)
            storages[storage.data_ptr()] = whole.to(device, copy=True)
        return storages[storage.data_ptr()].as_strided(table.shape, table.stride(), table.storage_offset())

    return {site: {name: moved(table) for name, table in own.items()} for site, own in shared.items()}


def _rows_on_cpu(table: Tensor, rows: Sequence[int]) -> list[Tensor]:
    if table.device.type == "cpu":
        return [table[row].clone() for row in rows]
    return [row.clone() for row in table[list(rows)].to("cpu")]


def _resized(table: Tensor, capacity: int) -> Tensor:
    resized = table.new_empty((capacity, *table.shape[1:]))
    kept = min(capacity, len(table))
    resized[:kept] = table[:kept]
    if kept == 0:
        resized[:1] = 0
    return resized
