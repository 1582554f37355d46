"""sDCTFT (arXiv 2410.09103): dW = alpha * D_out^T S D_in, D the orthonormal DCT-II, n coefficients at chosen places."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor

from cdvft.dct import dct, dct_matrix, idct
from cdvft.errors import InvalidAdapter
from cdvft.methods.base import Tensors, fft_flops
from cdvft.methods.spectral import INDICES, Places, Spectral, SpectralSpec, check_indices, frequencies, frequency_keys
from cdvft.methods.values import choice, number
from cdvft.site import Site

__all__ = ["Sdctft", "SdctftLayout", "SdctftSpec"]

STORED = "sdctft_indices"
ENERGY_SHARE = 0.7  # of the coefficients, chosen by the base weight's energy; the others are drawn
SEED = 777
CHUNK = 1024  # coefficients of one product of waves


@dataclass(frozen=True)
class SdctftSpec(SpectralSpec):
    """Hyper-parameters of one site; `dct_norm` says how D is scaled: only "ortho" is known."""

    alpha: float = 1.0
    dct_norm: str = "ortho"


@dataclass(frozen=True)
class SdctftLayout:
    d_out: int


class Sdctft(Spectral[SdctftSpec]):
    """Two DCTs (a real FFT each) and n real products for each token.

    There is no public code of the authors: this is our layout, `sdctft_spectrum [n]` and beside it `sdctft_indices [n]`
    (int64, row * d_in + column), which no seed could give back.
    """

    name: ClassVar[str] = "sdctft"
    peft_type: ClassVar[str] = "SDCTFT"
    spectrum: ClassVar[str] = "sdctft_spectrum"
    config_keys: ClassVar[frozenset[str]] = frozenset({"n_frequency", "n_frequency_pattern", "alpha", "dct_norm"})
    frozen_names: ClassVar[frozenset[str]] = frozenset({STORED})
    frozen_in_config: ClassVar[bool] = False

    def spec(self, config: Mapping[str, Any], site: Site) -> SdctftSpec:
        return SdctftSpec(
            n_frequency=frequencies(config, site, 1000),
            alpha=number(config, "alpha", 1.0),
            dct_norm=choice(config, "dct_norm", ("ortho",)),
        )

    def config(self, specs: Mapping[Site, SdctftSpec]) -> dict[str, Any]:
        first = next(iter(specs.values()))
        return {
            **frequency_keys(specs),
            "alpha": first.alpha,
            "dct_norm": first.dct_norm,
        }

    def examples(self, site: Site) -> list[SdctftSpec]:
        size = site.d_in * site.d_out
        return [SdctftSpec(n, alpha) for n in sorted({1, min(7, size), size}) for alpha in (1.0, 25.0)]

    def frozen(
        self, specs: Mapping[Site, SdctftSpec], generator: Generator, weights: Tensors | None = None
    ) -> dict[str, Tensor]:
        """0.7 n places where the transform of the base's weight is largest, the rest drawn (without it all), by
        one seed for everybody: adapters of one base and n stand on the same places, and share a bank.
        """
        chosen = {}
        for site, spec in sorted(specs.items()):
            order = torch.randperm(site.d_out * site.d_in, generator=Generator().manual_seed(SEED))
            weight = (weights or {}).get(site.name)
            if weight is not None:
                energy = dct(dct(weight.float()).T).T.square().flatten().cpu()
                best = energy.topk(round(ENERGY_SHARE * spec.n_frequency)).indices
                others = order[~torch.isin(order, best)]
                order = torch.cat([best, others])
            chosen[f"{site.name}.{STORED}"] = order[: spec.n_frequency].sort().values
        return chosen

    def check_frozen(self, frozen: Tensors, specs: Mapping[Site, SdctftSpec]) -> None:
        expected = {f"{site.name}.{STORED}": (site, spec) for site, spec in specs.items()}
        for name in sorted(frozen.keys() - expected.keys()):
            raise InvalidAdapter(f"{name} belongs to no site with a spectrum")
        for name, (site, spec) in sorted(expected.items()):
            check_indices(name, frozen.get(name), spec.n_frequency, site)

    def frozen_of(self, frozen: Tensors, site: Site, spec: SdctftSpec) -> dict[str, Tensor]:
        return {INDICES: frozen[f"{site.name}.{STORED}"]}

    def layout(self, site: Site, spec: SdctftSpec) -> SdctftLayout:
        return SdctftLayout(site.d_out)

    def height(self, layout: SdctftLayout) -> int:
        return layout.d_out

    def places(self, row: Tensor, column: Tensor, site: Site, spec: SdctftSpec) -> Places:
        return Places(column, row, spec.alpha)

    def analyse(self, x: Tensor, tables: Tensors, layout: SdctftLayout) -> Tensor:
        return dct(x)

    def synthesise(self, y: Tensor, tables: Tensors, layout: SdctftLayout) -> Tensor:
        return idct(y)

    def dense(self, tensors: Tensors, site: Site, spec: SdctftSpec) -> Tensor:
        total = torch.zeros(site.d_out, site.d_in, dtype=torch.float64)
        for rows, columns, values in self._waves(tensors, site, spec):
            total += (rows * values[:, None]).T @ columns
        return total

    def reference(self, x: Tensor, tensors: Tensors, site: Site, spec: SdctftSpec) -> Tensor:
        total = x.new_zeros((*x.shape[:-1], site.d_out))
        for rows, columns, values in self._waves(tensors, site, spec):
            total += ((x @ columns.T) * values) @ rows
        return total

    def _waves(self, tensors: Tensors, site: Site, spec: SdctftSpec) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Some coefficients at a time: their rows of D_out and D_in, and their values; on the CPU."""
        scaled = tensors[self.spectrum].double().cpu() * spec.alpha
        for index, values in zip(*(torch.split(t, CHUNK) for t in (tensors[INDICES].cpu(), scaled)), strict=True):
            yield dct_matrix(site.d_out, index // site.d_in), dct_matrix(site.d_in, index % site.d_in), values

    def flops(self, site: Site, spec: SdctftSpec) -> float:
        """Two real FFTs, 6 for each bin's twiddle, 2 for each coefficient."""
        transforms = sum(fft_flops(n) + 6.0 * (n // 2 + 1) for n in (site.d_in, site.d_out))
        return transforms + 2.0 * spec.n_frequency
