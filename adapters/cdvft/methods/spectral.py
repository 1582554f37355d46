"""Sparse coefficients between two one-dimensional transforms: dW = Y S U with S sparse, applied as Y (S (U x)).

Neither the transforms' matrices nor dW are built to serve. Where the coefficients stand is frozen: drawn by a seed or
chosen by whoever trained, never changed afterwards; adapters that agree on it share one bank.
"""

from abc import abstractmethod
from collections.abc import Hashable, Mapping
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from torch import Generator, Tensor

from cdvft.errors import InvalidAdapter
from cdvft.methods.base import Method, Tensors
from cdvft.methods.values import integer, pattern_of, patterned
from cdvft.patterns import lookup
from cdvft.site import Site

__all__ = [
    "INDICES",
    "MAX_FREQUENCIES",
    "Places",
    "Spectral",
    "check_indices",
    "check_shared_indices",
    "frequencies",
    "frequency_keys",
    "random_indices",
]

INDICES = "indices"  # of a site's coefficients, among its tensors: row * d_in + column, int64 [n]
MAX_FREQUENCIES = 1 << 24
SpecT = TypeVar("SpecT", bound=Hashable)


class Places(NamedTuple):
    """For each of the n coefficients: the entry of U x that it multiplies, the entry of the result that it is added to,
    int64 `[n]`, and a factor, `[n]` or a number."""

    columns: Tensor
    rows: Tensor
    factor: Tensor | float


class Spectral(Method[SpecT]):
    """`n_frequency` coefficients a site in one tensor, `spectrum`."""

    spectrum: ClassVar[str]
    shared_tables: ClassVar[frozenset[str]] = frozenset({"columns", "rows"})

    @abstractmethod
    def analyse(self, x: Tensor, tables: Tensors, layout: Any) -> Tensor:
        """`U x`: `[..., d_in]` -> `[..., entries]`, real or complex."""

    @abstractmethod
    def synthesise(self, y: Tensor, tables: Tensors, layout: Any) -> Tensor:
        """`Y y`: `[..., entries]` -> `[..., d_out]`."""

    @abstractmethod
    def places(self, row: Tensor, column: Tensor, site: Site, spec: SpecT) -> Places:
        """Of coefficients at (row, column) of S `[d_out, d_in]`, int64 `[n]`."""

    @abstractmethod
    def height(self, layout: Any) -> int:
        """Entries that `synthesise` takes."""

    @abstractmethod
    def count(self, spec: SpecT) -> int:
        """n of a site."""

    def shapes(self, site: Site, spec: SpecT) -> dict[str, tuple[int, ...]]:
        return {self.spectrum: (self.count(spec),)}

    def init(self, site: Site, spec: SpecT, generator: Generator, weight: Tensor | None = None) -> dict[str, Tensor]:
        """Zero: one factor alone, its gradient lives."""
        return {self.spectrum: torch.zeros(self.count(spec))}

    def prepare(self, tensors: Tensors, site: Site, spec: SpecT) -> dict[str, Tensor]:
        """`values [n]`; shared by the bank: `columns [n]`, `rows [n]` (see `Places`)."""
        index = tensors[INDICES]
        columns, rows, factor = self.places(index // site.d_in, index % site.d_in, site, spec)
        return {"values": tensors[self.spectrum] * factor, "columns": columns, "rows": rows}

    def apply(self, x: Tensor, tables: Tensors, layout: Any) -> Tensor:
        """Gather, multiply, scatter: O(d log d + n)."""
        terms = self.analyse(x, tables, layout).index_select(-1, tables["columns"]) * tables["values"]
        y = terms.new_zeros((*terms.shape[:-1], self.height(layout))).index_add(-1, tables["rows"], terms)
        return self.synthesise(y, tables, layout)


def random_indices(specs: Mapping[Site, int], seed: int) -> dict[str, Tensor]:
    """Where PEFT's FourierFT and WaveFT put a site's n coefficients, `specs[site]`: one permutation for each shape,
    of which every site takes the beginning. `indices.<d_out>x<d_in> [n]` int64; 0.5 s for 4096 x 4096.
    """
    most: dict[tuple[int, int], int] = {}
    for site, count in specs.items():
        most[site.d_out, site.d_in] = max(count, most.get((site.d_out, site.d_in), 0))
    return {
        f"{INDICES}.{d_out}x{d_in}": torch.randperm(d_out * d_in, generator=Generator().manual_seed(seed))[:n].clone()
        for (d_out, d_in), n in most.items()
    }


def check_indices(name: str, index: Tensor | None, count: int, site: Site) -> None:
    """Raises InvalidAdapter unless these are `count` different places of the site's dW."""
    what = f"{count} different indices from 0 to {site.d_out * site.d_in - 1} (row * {site.d_in} + column)"
    if index is None:
        raise InvalidAdapter(f"{name} is missing: {what}")
    if index.dtype != torch.int64 or tuple(index.shape) != (count,):
        dtype = str(index.dtype).removeprefix("torch.")
        raise InvalidAdapter(f"{name} is {dtype} {list(index.shape)}; it must be {what}")
    if int(index.min()) < 0 or int(index.max()) >= site.d_out * site.d_in or len(set(index.tolist())) != count:
        raise InvalidAdapter(f"{name} must be {what}; they are from {int(index.min())} to {int(index.max())}")


def check_shared_indices(frozen: Tensors, counts: Mapping[Site, int]) -> None:
    """Raises InvalidAdapter unless `frozen` is what `random_indices(counts)` could be."""
    expected: dict[str, tuple[int, Site]] = {}
    for site, count in counts.items():
        name = f"{INDICES}.{site.d_out}x{site.d_in}"
        expected[name] = (max(count, expected.get(name, (0, site))[0]), site)
    for name in sorted(frozen.keys() - expected.keys()):
        raise InvalidAdapter(f"frozen.safetensors: {name} belongs to no site; expected: {', '.join(sorted(expected))}")
    for name, (count, site) in expected.items():
        check_indices(f"frozen.safetensors: {name}", frozen.get(name), count, site)


def frequencies(config: Mapping[str, Any], site: Site, default: int) -> int:
    """`n_frequency`, or the site's own from `n_frequency_pattern`. Raises InvalidAdapter."""
    key = "n_frequency_pattern"
    own = pattern_of(config, key, lambda one: integer(one, key, None, 1, MAX_FREQUENCIES))
    count = lookup(own, site.name, key) or integer(config, "n_frequency", default, 1, MAX_FREQUENCIES) or default
    if count > site.d_in * site.d_out:
        raise InvalidAdapter(
            f"adapter_config.json: n_frequency {count} is more than {site.name} [{site.d_out}, {site.d_in}] has "
            f"entries, {site.d_in * site.d_out}"
        )
    return int(count)


def frequency_keys(specs: Mapping[Site, Any]) -> dict[str, Any]:
    """The config keys from which `frequencies` reads each spec's `n_frequency` again."""
    return patterned({site: spec.n_frequency for site, spec in specs.items()}, "n_frequency", "n_frequency_pattern")
