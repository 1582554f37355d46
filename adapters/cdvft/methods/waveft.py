"""WaveFT (arXiv 2505.12532): dW = scaling * crop(IDWT2(S)), one level, n coefficients at places that a seed draws."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor
from torch.nn.functional import conv1d, conv_transpose1d

from cdvft.errors import InvalidAdapter
from cdvft.methods.base import Tensors
from cdvft.methods.spectral import INDICES, Places, Seeded, SeededSpec, seeded_options
from cdvft.methods.values import flag, short
from cdvft.site import Site

__all__ = ["WaveFt", "WaveFtLayout", "WaveFtSpec"]

FILTERS = "filters"  # of the reconstruction: low-pass and high-pass, [2, taps]


@dataclass(frozen=True)
class WaveFtSpec(SeededSpec):
    """Hyper-parameters of one site. `taps` is the length of the wavelet's filters, 0 without a transform."""

    wavelet_family: str = "db1"
    use_idwt: bool = True
    taps: int = 2


@dataclass(frozen=True)
class WaveFtLayout:
    d_in: int
    d_out: int
    taps: int


class WaveFt(Seeded[WaveFtSpec]):
    """`R_out S' R_in^T`, R the reconstruction from the two halves (low, high) of a coefficient vector: two short
    convolutions with stride 2 and n products for each token, O(d taps + n).

    PEFT takes the upper right block of S for the band whose rows are high-pass and columns low-pass: the reverse of
    what its place says. The filters are frozen with the indices.
    """

    name: ClassVar[str] = "waveft"
    peft_type: ClassVar[str] = "WAVEFT"
    spectrum: ClassVar[str] = "waveft_spectrum"
    shared_tables: ClassVar[frozenset[str]] = frozenset({"columns", "rows", FILTERS})
    config_keys: ClassVar[frozenset[str]] = frozenset(
        "n_frequency n_frequency_pattern scaling random_loc_seed wavelet_family use_idwt".split()
    )

    def spec(self, config: Mapping[str, Any], site: Site) -> WaveFtSpec:
        family = config.get("wavelet_family") or "db1"
        use_idwt = config.get("use_idwt") is None or flag(config, "use_idwt")
        return WaveFtSpec(
            **seeded_options(config, site, 2592, 25.0),
            wavelet_family=family,
            use_idwt=use_idwt,
            taps=_taps(family) if use_idwt else 0,
        )

    def config(self, specs: Mapping[Site, WaveFtSpec]) -> dict[str, Any]:
        first = next(iter(specs.values()))
        return {**super().config(specs), "wavelet_family": first.wavelet_family, "use_idwt": first.use_idwt}

    def examples(self, site: Site) -> list[WaveFtSpec]:
        size = site.d_in * site.d_out
        found = []
        for count in sorted({1, min(7, size), size}):
            found += [WaveFtSpec(count, 25.0, 3, family, True, _taps(family)) for family in ("db1", "db2", "sym4")]
            found.append(WaveFtSpec(count, 0.7, use_idwt=False, taps=0))
        return found

    def frozen(
        self, specs: Mapping[Site, WaveFtSpec], generator: Generator, weights: Tensors | None = None
    ) -> dict[str, Tensor]:
        first = next(iter(specs.values()))
        return super().frozen(specs, generator, weights) | (
            {FILTERS: _filters(first.wavelet_family)} if first.use_idwt else {}
        )

    def check_frozen(self, frozen: Tensors, specs: Mapping[Site, WaveFtSpec]) -> None:
        super().check_frozen({name: tensor for name, tensor in frozen.items() if name != FILTERS}, specs)
        first, filters = next(iter(specs.values())), frozen.get(FILTERS)
        shape = None if filters is None else tuple(filters.shape)
        if shape != ((2, first.taps) if first.use_idwt else None):
            raise InvalidAdapter(
                f"frozen.safetensors: {FILTERS} is {shape}; {first.wavelet_family} has {(2, first.taps)}, and without "
                "use_idwt there are none"
            )

    def frozen_of(self, frozen: Tensors, site: Site, spec: WaveFtSpec) -> dict[str, Tensor]:
        return super().frozen_of(frozen, site, spec) | ({FILTERS: frozen[FILTERS]} if spec.use_idwt else {})

    def layout(self, site: Site, spec: WaveFtSpec) -> WaveFtLayout:
        return WaveFtLayout(site.d_in, site.d_out, spec.taps)

    def height(self, layout: WaveFtLayout) -> int:
        return 2 * _half(layout.d_out, layout.taps) if layout.taps else layout.d_out

    def places(self, row: Tensor, column: Tensor, site: Site, spec: WaveFtSpec) -> Places:
        if not spec.use_idwt:
            return Places(column, row, spec.scaling)
        tall, wide = _half(site.d_out, spec.taps), _half(site.d_in, spec.taps)
        row = row + (2 * tall - site.d_out) // 2  # S stands in the middle of its padding
        column = column + (2 * wide - site.d_in) // 2
        below, right = row // tall, column // wide
        return Places(column % wide + wide * below, row % tall + tall * right, spec.scaling)

    def prepare(self, tensors: Tensors, site: Site, spec: WaveFtSpec) -> dict[str, Tensor]:
        """`values [n]`; shared by the bank: `columns [n]`, `rows [n]`, `filters [2, 1, taps]`."""
        values = tensors[self.spectrum]
        filters = tensors[FILTERS].to(values.dtype)[:, None] if spec.use_idwt else values.new_zeros(2, 1, 0)
        return {**super().prepare(tensors, site, spec), FILTERS: filters}

    def analyse(self, x: Tensor, tables: Tensors, layout: WaveFtLayout) -> Tensor:
        """`R_in^T x`."""
        if not layout.taps:
            return x
        half = _half(layout.d_in, layout.taps)
        before = layout.taps - 2
        signal = x.new_zeros((*x.shape[:-1], 2 * half - 2 + layout.taps))
        signal[..., before : before + layout.d_in] = x
        bands = conv1d(signal.reshape(-1, 1, signal.shape[-1]), tables[FILTERS].to(x.dtype), stride=2)
        return bands.reshape(*x.shape[:-1], 2 * half)

    def synthesise(self, y: Tensor, tables: Tensors, layout: WaveFtLayout) -> Tensor:
        """`R_out y`, of which PEFT keeps the middle."""
        if not layout.taps:
            return y
        half = _half(layout.d_out, layout.taps)
        signal = conv_transpose1d(y.reshape(-1, 2, half), tables[FILTERS].to(y.dtype), stride=2)
        before = layout.taps - 2
        return signal[:, 0, before : before + layout.d_out].reshape(*y.shape[:-1], layout.d_out)

    def dense(self, tensors: Tensors, site: Site, spec: WaveFtSpec) -> Tensor:
        """Basis by basis: column k of R is the filter that stands at twice its coefficient's place."""
        index = tensors[INDICES].cpu()
        spectrum = torch.zeros(site.d_out, site.d_in, dtype=torch.float64)
        spectrum[index // site.d_in, index % site.d_in] = tensors[self.spectrum].double().cpu() * spec.scaling
        if not spec.use_idwt:
            return spectrum
        filters = tensors[FILTERS].double().cpu()
        tall, wide = _half(site.d_out, spec.taps), _half(site.d_in, spec.taps)
        padded = torch.zeros(2 * tall, 2 * wide, dtype=torch.float64)
        top, left = (2 * tall - site.d_out) // 2, (2 * wide - site.d_in) // 2
        padded[top : top + site.d_out, left : left + site.d_in] = spectrum
        (low_r, high_r), (low_c, high_c) = _bases(filters, site.d_out), _bases(filters, site.d_in)
        upper, lower = padded[:tall], padded[tall:]
        return (
            low_r @ upper[:, :wide] @ low_c.T
            + high_r @ upper[:, wide:] @ low_c.T
            + low_r @ lower[:, :wide] @ high_c.T
            + high_r @ lower[:, wide:] @ high_c.T
        )

    def flops(self, site: Site, spec: WaveFtSpec) -> float:
        """A multiply-add for each tap of each entry, and for each coefficient."""
        return 2.0 * (spec.taps * (site.d_in + site.d_out) + spec.n_frequency)


def _half(length: int, taps: int) -> int:
    """Coefficients of each band: PEFT pads by taps - 2, and to an even number."""
    return (length + taps - 1) // 2


def _bases(filters: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """R's two halves for signals of `length`: low and high, float64 `[length, half]`."""
    taps = filters.shape[1]
    half = _half(length, taps)
    whole = torch.zeros(2, 2 * half - 2 + taps, half, dtype=torch.float64)
    for k in range(half):
        whole[:, 2 * k : 2 * k + taps, k] = filters
    low, high = whole[:, taps - 2 : taps - 2 + length]
    return low, high


def _taps(family: Any) -> int:
    """The filters' length. Raises InvalidAdapter for a family that PEFT does not have."""
    from peft.tuners.waveft.constants import WAVELET_REDUCTIONS

    if not isinstance(family, str) or family not in WAVELET_REDUCTIONS:
        some = f"{len(WAVELET_REDUCTIONS)}: {', '.join(list(WAVELET_REDUCTIONS)[:3])}, ..."
        raise InvalidAdapter(f"adapter_config.json: wavelet_family {short(family)} is not one of PEFT's ({some})")
    return int(WAVELET_REDUCTIONS[family][0]) + 2


def _filters(family: str) -> Tensor:
    """Reconstruction filters, low-pass and high-pass, fp32 `[2, taps]`: PEFT's numbers."""
    from peft.tuners.waveft.wavelet import Wavelet

    wavelet = Wavelet(family)
    return torch.tensor([list(wavelet.rec_lo), list(wavelet.rec_hi)], dtype=torch.float32)
