"""Sparse coefficients between two one-dimensional transforms: dW = Y S U with S sparse, applied as Y (S (U x)).

Neither the transforms' matrices nor dW are built to serve. Where the coefficients stand is frozen: drawn by a seed or
chosen by whoever trained, never changed afterwards; adapters that agree on it share one bank.
"""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from torch import Generator, Tensor

from cdvft.errors import InvalidAdapter
from cdvft.methods.base import Method, Tensors
from cdvft.methods.values import integer, number, pattern_of, patterned
from cdvft.patterns import lookup
from cdvft.site import Site

__all__ = [
    "INDICES",
    "MAX_FREQUENCIES",
    "Places",
    "Seeded",
    "SeededSpec",
    "Spectral",
    "SpectralSpec",
    "check_indices",
    "frequencies",
    "frequency_keys",
    "seeded_options",
]

INDICES = "indices"  # of a site's coefficients, among its tensors: row * d_in + column, int64 [n]
MAX_FREQUENCIES = 1 << 24
LARGEST_SEED = 2**63 - 1


@dataclass(frozen=True)
class SpectralSpec:
    """n of one site."""

    n_frequency: int


@dataclass(frozen=True)
class SeededSpec(SpectralSpec):
    """Hyper-parameters of one site; one seed for all sites of an adapter."""

    scaling: float
    random_loc_seed: int = 777


SpecT = TypeVar("SpecT", bound=SpectralSpec)
SeededT = TypeVar("SeededT", bound=SeededSpec)


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

    def shapes(self, site: Site, spec: SpecT) -> dict[str, tuple[int, ...]]:
        return {self.spectrum: (spec.n_frequency,)}

    def init(self, site: Site, spec: SpecT, generator: Generator, weight: Tensor | None = None) -> dict[str, Tensor]:
        """Zero: one factor alone, its gradient lives."""
        return {self.spectrum: torch.zeros(spec.n_frequency)}

    def prepare(self, tensors: Tensors, site: Site, spec: SpecT) -> dict[str, Tensor]:
        """`values [n]`; shared by the bank: `columns [n]`, `rows [n]` (see `Places`)."""
        index = tensors[INDICES]
        columns, rows, factor = self.places(index // site.d_in, index % site.d_in, site, spec)
        values = tensors[self.spectrum]
        return {"values": (values * factor).to(values.dtype), "columns": columns, "rows": rows}

    def apply(self, x: Tensor, tables: Tensors, layout: Any) -> Tensor:
        """Gather, multiply, scatter: O(d log d + n)."""
        terms = self.analyse(x, tables, layout).index_select(-1, tables["columns"]) * tables["values"]
        y = terms.new_zeros((*terms.shape[:-1], self.height(layout))).index_add(-1, tables["rows"], terms)
        return self.synthesise(y, tables, layout)


class Seeded(Spectral[SeededT]):
    """The places are drawn by a seed as PEFT's FourierFT and WaveFT draw them: one permutation for each shape, of which
    every site takes the beginning (0.5 s for 4096 x 4096). Frozen: `indices.<d_out>x<d_in> [n]` int64.
    """

    def config(self, specs: Mapping[Site, SeededT]) -> dict[str, Any]:
        first = next(iter(specs.values()))
        return {**frequency_keys(specs), "scaling": first.scaling, "random_loc_seed": first.random_loc_seed}

    def frozen(
        self, specs: Mapping[Site, SeededT], generator: Generator, weights: Tensors | None = None
    ) -> dict[str, Tensor]:
        seed = next(iter(specs.values())).random_loc_seed
        return {
            name: torch.randperm(site.d_out * site.d_in, generator=Generator().manual_seed(seed))[:count].clone()
            for name, (count, site) in _permutations(specs).items()
        }

    def check_frozen(self, frozen: Tensors, specs: Mapping[Site, SeededT]) -> None:
        expected = _permutations(specs)
        for name in sorted(frozen.keys() - expected.keys()):
            known = ", ".join(sorted(expected))
            raise InvalidAdapter(f"frozen.safetensors: {name} belongs to no site; expected: {known}")
        for name, (count, site) in expected.items():
            check_indices(f"frozen.safetensors: {name}", frozen.get(name), count, site)

    def frozen_of(self, frozen: Tensors, site: Site, spec: SeededT) -> dict[str, Tensor]:
        return {INDICES: frozen[_permutation(site)][: spec.n_frequency]}


def seeded_options(config: Mapping[str, Any], site: Site, count: int, scaling: float) -> dict[str, Any]:
    """The fields of a SeededSpec from adapter_config.json, with these defaults. Raises InvalidAdapter."""
    return {
        "n_frequency": frequencies(config, site, count),
        "scaling": number(config, "scaling", scaling),
        "random_loc_seed": integer(config, "random_loc_seed", 777, 0, LARGEST_SEED) or 0,
    }


def _permutation(site: Site) -> str:
    return f"{INDICES}.{site.d_out}x{site.d_in}"


def _permutations(specs: Mapping[Site, SeededT]) -> dict[str, tuple[int, Site]]:
    """Each shape's frozen tensor: how many of its indices some site takes, and a site of the shape."""
    found: dict[str, tuple[int, Site]] = {}
    for site, spec in specs.items():
        name = _permutation(site)
        found[name] = (max(spec.n_frequency, found.get(name, (0, site))[0]), site)
    return found


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


def frequency_keys(specs: Mapping[Site, SpecT]) -> dict[str, Any]:
    """The config keys from which `frequencies` reads each spec's `n_frequency` again."""
    return patterned({site: spec.n_frequency for site, spec in specs.items()}, "n_frequency", "n_frequency_pattern")
