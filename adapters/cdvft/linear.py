"""The adapted layer: a frozen linear layer plus, for each slice of the packed tokens, that slice's adapters.

Gather outside, maths inside: this module picks table rows, a method's `apply` computes as if there were one adapter.
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from cdvft.kernels import Wanted
from cdvft.methods.base import Adder, Method, Tensors
from cdvft.site import Site

__all__ = ["AdaptedLinear", "AdapterContext", "BankSlice", "MergedRun", "TrainableLinear", "adapt"]

CHUNK = 256  # tokens per `apply`: temporaries stay in the L2 cache


@dataclass(frozen=True)
class BankSlice:
    """Tokens `[start, stop)` of a packed batch whose adapters sit in one bank.

    `tables[site.name]` holds `[rows, ...]` tensors, `shared[site.name]` those that all rows have in common,
    `layouts[site.name]` what the method needs besides them;
    `runs` are (row, number of tokens) in token order and cover the slice. `adders` is kept by whoever keeps the tables,
    and filled here. Where there are `rows [stop - start]` (int64, on the tables' device) they stand for the runs and
    are read as the forward runs: nothing is decided on the host, and tokens of row 0 stay as they are.
    """

    start: int
    stop: int
    method: Method[Any]
    tables: Mapping[str, Tensors]
    layouts: Mapping[str, Any]
    runs: Sequence[tuple[int, int]]
    shared: Mapping[str, Tensors] = field(default_factory=dict)
    adders: dict[tuple[str, Wanted], Adder | None] = field(default_factory=dict)
    rows: Tensor | None = None

    def adder(self, site: str, kernel: Wanted) -> Adder | None:
        """The method's, made once for these tables; None where it has none."""
        key = site, kernel
        if key not in self.adders:
            self.adders[key] = self.method.adder(self.tables[site], self.layouts[site], kernel)
        return self.adders[key]

    @cached_property
    def row_of_each(self) -> Tensor:
        """`[stop - start]` int64, on the tables' device."""
        if self.rows is not None:
            return self.rows
        device = next(iter(next(iter(self.tables.values())).values())).device
        return torch.tensor([row for row, n in self.runs for _ in range(n)], dtype=torch.int64, device=device)

    @cached_property
    def chunks(self) -> list[tuple[int, int, int | Tensor]]:
        """(start, stop, row or rows `[stop - start]`): long runs by one row, neighbouring short ones together."""
        if self.rows is not None:
            return [(self.start, self.stop, self.rows)]
        chunks: list[tuple[int, int, int | Tensor]] = []
        pending: list[int] = []
        position = pending_start = self.start
        view = self.method.view_tokens
        for row, count in self.runs:
            if count >= view or (pending and len(pending) + count > CHUNK):
                chunks += _gathered(pending_start, pending)
                pending, pending_start = [], position
            if count >= view:
                ends = range(position, position + count, CHUNK)
                chunks += [(a, min(a + CHUNK, position + count), row) for a in ends]
                pending_start = position + count
            else:
                pending += [row] * count
            position += count
        return chunks + _gathered(pending_start, pending)


def _gathered(start: int, rows: list[int]) -> list[tuple[int, int, int | Tensor]]:
    if not rows:
        return []
    if len(set(rows)) == 1:
        return [(start, start + len(rows), rows[0])]
    return [(start, start + len(rows), torch.tensor(rows))]


@dataclass(frozen=True)
class MergedRun:
    """Tokens `[start, stop)` that go through W + dW: `weights[site.name] [d_out, d_in]`, the base's own where it is not
    among them."""

    start: int
    stop: int
    weights: Mapping[str, Tensor]


@dataclass(frozen=True, eq=False, slots=True)
class Active:
    """What a forward applies; `between` is called as each adapted layer begins."""

    slices: Sequence[BankSlice] = ()
    merged: Sequence[MergedRun] = ()
    between: Callable[[], None] | None = None


NOTHING = Active()


class AdapterContext:
    """Which adapters the forward that runs in this thread applies; handed to every adapted layer by constructor.
    `kernel`: which fast path methods that have one take."""

    def __init__(self, kernel: Wanted = "auto") -> None:
        self.kernel = kernel
        self._local = threading.local()

    @property
    def active(self) -> Active:
        """This thread's."""
        return getattr(self._local, "active", NOTHING)

    @contextmanager
    def activate(
        self,
        slices: Sequence[BankSlice],
        merged: Sequence[MergedRun] = (),
        between: Callable[[], None] | None = None,
    ) -> Iterator[None]:
        """Apply these adapters inside the block; `merged` in token order. `between` is called as each adapted layer
        begins. Refuses nesting; always clears, on exceptions too."""
        if self.active is not NOTHING:
            raise RuntimeError("a batch is active already; adapter contexts do not nest")
        self._local.active = Active(slices, merged, between)
        try:
            yield
        finally:
            self._local.active = NOTHING

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Another batch may be active inside the block, in the middle of the one that is; then that one goes on."""
        before, self._local.active = self.active, NOTHING
        try:
            yield
        finally:
            self._local.active = before

    def add_delta(self, site: Site, x: Tensor, y: Tensor) -> None:
        """`y += dW x` in place for the active slices: `x [T, d_in]`, `y [T, d_out]`."""
        for bank in self.active.slices:
            if site.name not in bank.tables:
                continue
            add = bank.adder(site.name, self.kernel)
            if add is not None:
                whole, span = bank.stop - bank.start == len(x), slice(bank.start, bank.stop)
                if add(x if whole else x[span], y if whole else y[span], bank.row_of_each):
                    continue
            tables, layout, shared = bank.tables[site.name], bank.layouts[site.name], bank.shared.get(site.name, {})
            for start, stop, rows in bank.chunks:
                picked = {name: _pick(table, rows) for name, table in tables.items()}
                picked.update(shared)
                delta = bank.method.apply(x[start:stop].float(), picked, layout).to(y.dtype)
                y[start:stop] += delta if bank.rows is None else delta.masked_fill_((bank.rows == 0)[:, None], 0.0)


def _pick(table: Tensor, rows: int | Tensor) -> Tensor:
    return table[rows] if isinstance(rows, int) else table.index_select(0, rows.to(table.device))


class AdaptedLinear(nn.Module):
    """A frozen linear layer that serves: `W x` plus the active adapters' `dW x`; input `[(1,) T, d_in]`."""

    def __init__(self, linear: nn.Linear, site: Site, context: AdapterContext) -> None:
        super().__init__()
        self.linear, self.site, self.context = linear, site, context

    @property
    def weight(self) -> Tensor:
        """The base's own weight `[d_out, d_in]`: model code reads its dtype."""
        return self.linear.weight

    def forward(self, x: Tensor) -> Tensor:
        active = self.context.active
        if active.between is not None:
            active.between()
        y: Tensor = self.linear(x) if not active.merged else self._by_runs(x, active.merged)
        if active.slices:
            self.context.add_delta(self.site, x.reshape(-1, self.site.d_in), y.view(-1, self.site.d_out))
        return y

    def _by_runs(self, x: Tensor, merged: Sequence[MergedRun]) -> Tensor:
        """Each merged run by its own matrix, all other tokens by the base's."""
        tokens = x.reshape(-1, self.site.d_in)
        parts, position = [], 0
        for run in merged:
            weight = run.weights.get(self.site.name)
            if weight is not None:
                parts.append(self.linear(tokens[position : run.start]))
                parts.append(nn.functional.linear(tokens[run.start : run.stop], weight, self.linear.bias))
                position = run.stop
        parts.append(self.linear(tokens[position:]))
        return torch.cat(parts).view(*x.shape[:-1], self.site.d_out)


class TrainableLinear(nn.Module):
    """A frozen linear layer that trains one adapter, by the same `prepare` and `apply` that serve it."""

    def __init__(
        self,
        linear: nn.Linear,
        site: Site,
        method: Method[Any],
        spec: Any,
        tensors: Tensors,
        *,
        frozen: Tensors | None = None,
    ) -> None:
        super().__init__()
        self.linear, self.site, self.method, self.spec = linear, site, method, spec
        self.frozen = {name: tensor.to(linear.weight.device) for name, tensor in (frozen or {}).items()}
        self.vectors = nn.ParameterDict(
            {
                name: nn.Parameter(tensor.clone(), requires_grad=name not in method.untrained)
                for name, tensor in tensors.items()
            }
        )

    @property
    def weight(self) -> Tensor:
        return self.linear.weight

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(x)
        with torch.autocast(x.device.type, enabled=False):
            tables = self.method.prepare({**dict(self.vectors.items()), **self.frozen}, self.site, self.spec)
            delta = self.method.apply(x.float(), tables, self.method.layout(self.site, self.spec))
        return y + delta.to(y.dtype)


def adapt(backbone: nn.Module, sites: Mapping[str, Site], context: AdapterContext) -> None:
    """Replace every site's linear layer in place by an AdaptedLinear that listens to `context`."""
    for site in sites.values():
        parent, _, child = site.name.rpartition(".")
        owner = backbone.get_submodule(parent)
        linear = owner.get_submodule(child)
        plain = linear.linear if isinstance(linear, AdaptedLinear) else linear  # a backbone may be adapted anew
        setattr(owner, child, AdaptedLinear(plain, site, context))  # type: ignore[arg-type]
