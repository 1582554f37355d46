"""FourierFT (arXiv 2405.03003): dW = scaling * Re ifft2(S), n real coefficients at places that a seed draws."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from cdvft.methods.base import Tensors, fft_flops
from cdvft.methods.spectral import INDICES, Places, Seeded, SeededSpec, seeded_options
from cdvft.site import Site

__all__ = ["FourierFt", "FourierFtLayout", "FourierFtSpec"]

CHUNK = 1024  # coefficients of one product of waves
Wave = tuple[Tensor, Tensor]  # cos and sin, `[length, coefficients]` float64


class FourierFtSpec(SeededSpec):
    """Hyper-parameters of one site."""


@dataclass(frozen=True)
class FourierFtLayout:
    d_out: int


class FourierFt(Seeded[FourierFtSpec]):
    """Two 1-D FFTs and n products for each token: `irfft(S' [X, conj X])` with `X = rfft(x)`.

    An entry s at (r, c) stands for half of itself at (r, -c) and, mirrored, at (-r, c), both divided by d_in; the irfft
    needs one of the two rows: the other is its conjugate. Columns beyond the middle are read as conj(X[d_in - c]).
    """

    name: ClassVar[str] = "fourierft"
    peft_type: ClassVar[str] = "FOURIERFT"
    spectrum: ClassVar[str] = "fourierft_spectrum"
    config_keys: ClassVar[frozenset[str]] = frozenset(
        {"n_frequency", "n_frequency_pattern", "scaling", "random_loc_seed"}
    )

    def spec(self, config: Mapping[str, Any], site: Site) -> FourierFtSpec:
        return FourierFtSpec(**seeded_options(config, site, 1000, 150.0))

    def examples(self, site: Site) -> list[FourierFtSpec]:
        size = site.d_in * site.d_out
        counts = sorted({1, min(7, size), size})
        return [FourierFtSpec(n, scaling, seed) for n in counts for scaling in (150.0, 0.7) for seed in (777, 3)]

    def layout(self, site: Site, spec: FourierFtSpec) -> FourierFtLayout:
        return FourierFtLayout(site.d_out)

    def height(self, layout: FourierFtLayout) -> int:
        return layout.d_out // 2 + 1

    def places(self, row: Tensor, column: Tensor, site: Site, spec: FourierFtSpec) -> Places:
        mirrored = 2 * row > site.d_out
        row = torch.where(mirrored, site.d_out - row, row)
        column = torch.where(mirrored, column, -column) % site.d_in
        upper = 2 * column > site.d_in
        half = site.d_in // 2 + 1
        own_mirror = (row == 0) | (2 * row == site.d_out)  # both halves in one row, where only the real part counts
        factor = torch.where(own_mirror, 1.0, 0.5).to(torch.float64) * (spec.scaling / site.d_in)
        return Places(torch.where(upper, half + site.d_in - column, column), row, factor)

    def analyse(self, x: Tensor, tables: Tensors, layout: FourierFtLayout) -> Tensor:
        spectrum = torch.fft.rfft(x)
        return torch.cat([spectrum, spectrum.conj()], dim=-1)

    def synthesise(self, y: Tensor, tables: Tensors, layout: FourierFtLayout) -> Tensor:
        signal: Tensor = torch.fft.irfft(y, n=layout.d_out)
        return signal

    def dense(self, tensors: Tensors, site: Site, spec: FourierFtSpec) -> Tensor:
        """`dW[a, b] = scaling / (d_out d_in) sum_k s_k cos(2 pi (r_k a / d_out + c_k b / d_in))`."""
        total = torch.zeros(site.d_out, site.d_in, dtype=torch.float64)
        for (cos_out, sin_out), (cos_in, sin_in), s in self._waves(tensors, site, spec):
            total += (cos_out * s) @ cos_in.T - (sin_out * s) @ sin_in.T
        return total

    def reference(self, x: Tensor, tensors: Tensors, site: Site, spec: FourierFtSpec) -> Tensor:
        total = x.new_zeros((*x.shape[:-1], site.d_out))
        for (cos_out, sin_out), (cos_in, sin_in), s in self._waves(tensors, site, spec):
            total += ((x @ cos_in) * s) @ cos_out.T - ((x @ sin_in) * s) @ sin_out.T
        return total

    def _waves(self, tensors: Tensors, site: Site, spec: FourierFtSpec) -> Iterator[tuple[Wave, Wave, Tensor]]:
        """Some coefficients at a time: the rows' waves, the columns', and the scaled coefficients; on the CPU."""
        s = tensors[self.spectrum].double().cpu() * (spec.scaling / (site.d_out * site.d_in))
        for index, values in zip(*(torch.split(t, CHUNK) for t in (tensors[INDICES].cpu(), s)), strict=True):
            yield _wave(index // site.d_in, site.d_out), _wave(index % site.d_in, site.d_in), values

    def flops(self, site: Site, spec: FourierFtSpec) -> float:
        """Two real FFTs, and 4 for each coefficient: a real number times a complex one, and the addition."""
        return fft_flops(site.d_in) + fft_flops(site.d_out) + 4.0 * spec.n_frequency

    def paper_flops(self, site: Site, spec: FourierFtSpec) -> float:
        """`(5 log2 N + 4) N` with N = d_in d_out: a 2-D FFT for every token."""
        size = site.d_in * site.d_out
        return (5 * math.log2(max(size, 2)) + 4) * size


def _wave(frequency: Tensor, length: int) -> Wave:
    """cos and sin of `2 pi k t / length`, float64 `[length, n]`; the product is reduced as an integer."""
    angle = (torch.arange(length)[:, None] * frequency % length).double() * (2 * math.pi / length)
    return angle.cos(), angle.sin()
