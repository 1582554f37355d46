"""Random adapters of one base, as many as a bench asks for: q and v, the hyper-parameters of `cdvft train`."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from cdvft.adapter import Adapter, AdapterSpec
from cdvft.baseinfo import BaseInfo
from cdvft.checkpoint import make_adapter
from cdvft.heads import HeadSpec, init_head
from cdvft.methods import method_named
from cdvft.methods.base import Tensors
from cdvft.prepared import PreparedAdapter, prepare_adapter
from cdvft.site import Site
from cdvft.train.config import TrainConfig
from cdvft.train.recipe import check_method, method_specs
from torch import Generator, Tensor

from cdvft_server.bench.settings import BenchError, Task

__all__ = ["ORIGINALS", "Fleet"]

ORIGINALS = 128  # drawn one by one; the others of a fleet are variations of these
SCALE = 0.02  # |dW x| over |x|: trained adapters change a layer's output little
LABELS = ("no", "yes")


class Fleet:
    """Adapters of one method, all of one bank; classifiers have a linear head. Raises CdvftError for the method."""

    def __init__(self, base: BaseInfo, method: str, task: Task) -> None:
        config = TrainConfig("lm" if task == "generate" else "classify", "", Path(), Path(), method=method)
        check_method(config)
        self.base, self.method = base, method_named(method)
        ends = tuple(f".{base.family.projections[short]}" for short in ("q", "v"))
        sites = {site for site in base.sites.values() if site.name.endswith(ends)}
        specs = method_specs(config, sites)
        self.frozen = self.method.frozen(specs, Generator().manual_seed(0))
        head = HeadSpec("linear", base.family.linear_pooling, len(LABELS)) if task == "classify" else None
        kind: Any = "classification" if head else "lm"
        self.spec = AdapterSpec(method, specs, kind, head, LABELS if head else None)

    def adapter(self, seed: int) -> Adapter:
        """Normal tensors, scaled so that |dW x| is about SCALE * |x| at each site."""
        generator = Generator().manual_seed(seed)
        tensors = {site.name: self._vectors(site, spec, generator) for site, spec in sorted(self.spec.sites.items())}
        head: Mapping[str, Tensor] = {}
        if self.spec.head is not None:
            head = init_head(self.spec.head, self.base.family, self.base.hidden, generator)
        return make_adapter(self.spec, tensors, head, self.base, frozen=self.frozen)

    def prepared(self, count: int) -> Iterator[PreparedAdapter]:
        """`count` adapters in serving form, each with numbers and a digest of its own.

        The first ORIGINALS are drawn. Each further one is one of them in turn with one table of every site times a
        factor of its own, so that thousands take seconds; its digest is made of the original's and its number, not of
        its content.
        """
        originals = []
        for number in range(count):
            if number < ORIGINALS:
                originals.append(prepare_adapter(self.adapter(number)))
                yield originals[-1]
            else:
                yield _varied(originals[number % ORIGINALS], number)

    @torch.no_grad()
    def _vectors(self, site: Site, spec: Any, generator: Generator) -> dict[str, Tensor]:
        shapes = self.method.shapes(site, spec)
        own = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
        x = torch.randn(4, site.d_in, generator=generator)
        tables = self.method.prepare({**own, **self.method.frozen_of(self.frozen, site, spec)}, site, spec)
        y = self.method.apply(x, tables, self.method.layout(site, spec))
        own[min(own)] *= SCALE * float(x.norm() / y.norm())  # dW is linear in each tensor
        return own


def memory_of(one: PreparedAdapter, count: int) -> int:
    """Bytes of the pool that holds `count` adapters like this one."""
    return (count + 1) * one.nbytes + one.shared_nbytes + count * one.head_nbytes


def check_memory(one: PreparedAdapter, count: int, available: int) -> None:
    """Raises BenchError where `count` adapters like this one need more than the `available` bytes."""
    if memory_of(one, count) > available:
        most = max(1, (available - one.shared_nbytes) // (one.nbytes + one.head_nbytes) - 1)
        raise BenchError(
            f"--adapters {count}: they need {memory_of(one, count) >> 20} MiB, there are {available >> 20} MiB; "
            f"give at most --adapters {most}"
        )


def _varied(original: PreparedAdapter, number: int) -> PreparedAdapter:
    """dW times a factor from 0.5 to 1.5."""
    factor = 0.5 + number * 0.6180339887 % 1.0
    tables = {site: _scaled(own, factor) for site, own in original.tables.items()}
    digest = "sha256:" + hashlib.sha256(f"{original.digest} {number}".encode()).hexdigest()
    return replace(original, digest=digest, tables=tables)


def _scaled(tables: Tensors, factor: float) -> Tensors:
    """One table, of those that hold no indices."""
    name = min(name for name, table in tables.items() if table.is_floating_point() or table.is_complex())
    return {**tables, name: tables[name] * factor}
