"""An adapter in serving form: what a bank row holds, ready to be copied onto the device."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from cdvft.adapter import Adapter
from cdvft.digest import tensor_hash
from cdvft.heads import HeadSpec
from cdvft.methods import Method
from cdvft.methods.base import Tensors

__all__ = ["PreparedAdapter", "prepare_adapter", "storages"]


@dataclass(frozen=True)
class PreparedAdapter:
    """`tables[site.name][name]`, `shared` and `layouts[site.name]` are what `method.apply` takes, without a row axis.

    Adapters of equal `signature` share a bank: same method, sites, layouts, table shapes and dtypes, frozen tensors.
    `shared` tables may be views of one storage; sizes are in bytes, a storage's counted once.
    """

    digest: str
    method: Method[Any]
    signature: Hashable
    tables: Mapping[str, Tensors]
    layouts: Mapping[str, Any]
    head: HeadSpec | None
    head_tensors: Tensors
    nbytes: int
    head_nbytes: int
    shared: Mapping[str, Tensors] = field(default_factory=dict)
    shared_nbytes: int = 0
    flops: float = 0.0  # of one token, all sites, without the head (`Method.flops`)

    @property
    def least_memory(self) -> int:
        """Bytes of a bank that holds this adapter alone: its row, the row of zeros, what is shared, and the head."""
        return 2 * self.nbytes + self.shared_nbytes + self.head_nbytes


@torch.no_grad()
def prepare_adapter(adapter: Adapter) -> PreparedAdapter:
    """Every site's `method.prepare`, once; the tensors stay on the CPU."""
    method = adapter.method
    tables: dict[str, Tensors] = {}
    shared: dict[str, Tensors] = {}
    layouts: dict[str, Any] = {}
    for site, spec in sorted(adapter.spec.sites.items()):
        prepared = method.prepare(adapter.site_tensors(site), site, spec)
        shared[site.name] = {name: prepared.pop(name) for name in sorted(method.shared_tables)}
        tables[site.name] = {name: table.contiguous() for name, table in sorted(prepared.items())}
        layouts[site.name] = method.layout(site, spec)
    return PreparedAdapter(
        digest=adapter.digest,
        method=method,
        signature=(
            method.name,
            tuple((name, layouts[name], _shapes(own), _shapes(shared[name])) for name, own in tables.items()),
            tuple((name, tensor_hash(tensor)) for name, tensor in sorted(adapter.frozen.items())),
        ),
        tables=tables,
        shared=shared,
        layouts=layouts,
        head=adapter.spec.head,
        head_tensors=dict(adapter.head),
        nbytes=sum(_nbytes(own) for own in tables.values()),
        head_nbytes=_nbytes(adapter.head),
        shared_nbytes=sum(storages(shared).values()),
        flops=sum(method.flops(site, spec) for site, spec in adapter.spec.sites.items()),
    )


def storages(tables: Mapping[str, Tensors]) -> dict[int, int]:
    """Bytes of each distinct storage below these tables, by its address."""
    found = [table.untyped_storage() for own in tables.values() for table in own.values()]
    return {storage.data_ptr(): storage.nbytes() for storage in found}


def _shapes(tables: Tensors) -> tuple[tuple[str, tuple[int, ...], torch.dtype], ...]:
    return tuple((name, tuple(table.shape), table.dtype) for name, table in tables.items())


def _nbytes(tensors: Tensors) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
