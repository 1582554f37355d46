"""CDVFT (arXiv 2505.00580): dW = alpha * diag(a_{2m-1}) circ(c_{2m-2}) ... circ(c_2) diag(a_1).

m diagonals and m - 1 circulants. The first circulant is a grid of p x p blocks (Eq. 12); the others are d_out x d_out.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

import torch
from torch import Generator, Tensor

from cdvft.circulant import Convention, circulant_rows, transposed
from cdvft.errors import InvalidAdapter
from cdvft.fft import block_circulant, circulant_spectrum
from cdvft.methods.base import Adder, Method, Tensors, fft_flops
from cdvft.methods.values import choice, integer, number, patterned, short
from cdvft.patterns import lookup
from cdvft.site import Site

if TYPE_CHECKING:
    from cdvft.kernels import Wanted

__all__ = ["Cdvft", "CdvftLayout", "CdvftSpec", "fresh_partition_size"]

Grid = Literal["rect", "square"]
Padding = Literal["zero", "cyclic"]
MAX_FACTORS = 16
MAX_SITES = 4096


@dataclass(frozen=True)
class CdvftSpec:
    """Hyper-parameters of one site; `partition_size` is the block length p, `alpha` multiplies dW directly."""

    partition_size: int
    num_factors: int = 2
    alpha: float = 1.0
    circulant_convention: Convention = "first_col"
    block_grid: Grid = "rect"
    padding: Padding = "zero"

    def __post_init__(self) -> None:
        object.__setattr__(self, "alpha", self.alpha + 0.0)  # -0.0 is 0.0 and must have the same digest

    def grid(self, site: Site) -> tuple[int, int]:
        """Blocks on disk: (q_out, q_in)."""
        q_out, q_in = -(-site.d_out // self.partition_size), -(-site.d_in // self.partition_size)
        return (max(q_out, q_in),) * 2 if self.block_grid == "square" else (q_out, q_in)


@dataclass(frozen=True)
class CdvftLayout:
    """What `apply` needs besides the tables: block length, and how the input becomes `[q_in, p]`."""

    d_in: int
    d_out: int
    p: int
    q_in: int
    cyclic: bool


class Cdvft(Method[CdvftSpec]):
    """The project's own method. Precision: fp32 vectors and FFT whatever the base's dtype."""

    name: ClassVar[str] = "cdvft"
    peft_type: ClassVar[str] = "CDVFT"
    config_keys: ClassVar[frozenset[str]] = frozenset(
        "num_factors partition_size partition_size_pattern alpha circulant_convention block_grid padding "
        "site_shapes".split()
    )

    def spec(self, config: Mapping[str, Any], site: Site) -> CdvftSpec:
        _check_site_shape(config.get("site_shapes"), site)
        size = integer(config, "partition_size", None, 1, 1 << 20)
        pattern = config.get("partition_size_pattern") or {}
        if not isinstance(pattern, dict) or not all(type(v) is int and 0 < v <= 1 << 20 for v in pattern.values()):
            raise InvalidAdapter(
                "adapter_config.json: partition_size_pattern must map module names to positive integers"
            )
        size = lookup(pattern, site.name, "partition_size_pattern") or size or math.gcd(site.d_in, site.d_out)
        if size > 2 * max(site.d_in, site.d_out):
            raise InvalidAdapter(
                f"adapter_config.json: partition_size {size} is more than twice the larger side of {site.name} "
                f"[{site.d_out}, {site.d_in}]"
            )
        return CdvftSpec(
            partition_size=size,
            num_factors=integer(config, "num_factors", 2, 2, MAX_FACTORS) or 2,
            alpha=number(config, "alpha", 1.0),
            circulant_convention=choice(config, "circulant_convention", get_args(Convention)),
            block_grid=choice(config, "block_grid", get_args(Grid)),
            padding=choice(config, "padding", get_args(Padding)),
        )

    def config(self, specs: Mapping[Site, CdvftSpec]) -> dict[str, Any]:
        sizes = {site: spec.partition_size for site, spec in specs.items()}
        first = next(iter(specs.values()))
        return {
            "num_factors": first.num_factors,
            **patterned(sizes, "partition_size", "partition_size_pattern"),
            "alpha": first.alpha,
            "circulant_convention": first.circulant_convention,
            "block_grid": first.block_grid,
            "padding": first.padding,
            "site_shapes": {site.name: [site.d_out, site.d_in] for site in specs},
        }

    def examples(self, site: Site) -> list[CdvftSpec]:
        sizes = sorted({1, 2, 5, math.gcd(site.d_in, site.d_out), max(site.d_in, site.d_out)})
        sizes = [p for p in sizes if p <= 2 * max(site.d_in, site.d_out)]
        choices = product(sizes, (2, 3, 4), get_args(Convention), get_args(Grid), get_args(Padding))
        return [CdvftSpec(p, m, 0.7 * m, convention, grid, padding) for p, m, convention, grid, padding in choices]

    def shapes(self, site: Site, spec: CdvftSpec) -> dict[str, tuple[int, ...]]:
        m = spec.num_factors
        shapes: dict[str, tuple[int, ...]] = {
            "cdvft_diag_in": (site.d_in,),
            "cdvft_circ": (*spec.grid(site), spec.partition_size),
            "cdvft_diag_out": (m - 1, site.d_out),
        }
        if m > 2:
            shapes["cdvft_circ_sq"] = (m - 2, site.d_out)
        return shapes

    def init(
        self, site: Site, spec: CdvftSpec, generator: Generator, weight: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Last diagonal zero, circulants N(0, 1/length), the other diagonals 1: dW = 0, one gradient lives."""
        shapes = self.shapes(site, spec)
        tensors = {name: torch.ones(shape) for name, shape in shapes.items() if "diag" in name}
        tensors["cdvft_diag_out"][-1] = 0.0
        span = spec.grid(site)[1] * spec.partition_size
        tensors["cdvft_circ"] = torch.randn(shapes["cdvft_circ"], generator=generator) * span**-0.5
        if "cdvft_circ_sq" in shapes:
            tensors["cdvft_circ_sq"] = torch.randn(shapes["cdvft_circ_sq"], generator=generator) * site.d_out**-0.5
        return tensors

    def layout(self, site: Site, spec: CdvftSpec) -> CdvftLayout:
        p = spec.partition_size
        cyclic = spec.padding == "cyclic" and site.d_in % p != 0
        q_in = spec.grid(site)[1] if cyclic else -(-site.d_in // p)
        return CdvftLayout(site.d_in, site.d_out, p, q_in, cyclic)

    def prepare(self, tensors: Tensors, site: Site, spec: CdvftSpec) -> dict[str, Tensor]:
        """`diag_in [d_in]`, `spectrum [q_out, q_in, p//2+1]`, `diag_out [m-1, d_out]` with alpha in its last row, and
        for m > 2 `spectrum_sq [m-2, d_out//2+1]`; spectra complex."""
        circulant = self._folded(tensors["cdvft_circ"], site, spec)
        square = tensors.get("cdvft_circ_sq")
        if spec.circulant_convention == "first_row":
            circulant, square = transposed(circulant), None if square is None else transposed(square)
        diag_out = tensors["cdvft_diag_out"]
        if spec.alpha != 1.0:
            scale = torch.ones(spec.num_factors - 1, 1, dtype=circulant.dtype, device=circulant.device)
            scale[-1] = spec.alpha
            diag_out = diag_out * scale
        tables = {
            "diag_in": tensors["cdvft_diag_in"],
            "spectrum": circulant_spectrum(circulant),
            "diag_out": diag_out,
        }
        if square is not None:
            tables["spectrum_sq"] = circulant_spectrum(square)
        return tables

    def _folded(self, circulant: Tensor, site: Site, spec: CdvftSpec) -> Tensor:
        """The grid without blocks that see no input or give no output; cyclic repeats of whole blocks are summed."""
        layout = self.layout(site, spec)
        q_out = -(-site.d_out // spec.partition_size)
        circulant = circulant[:q_out]
        if spec.padding == "cyclic" and not layout.cyclic:
            return torch.stack([circulant[:, j :: layout.q_in].sum(1) for j in range(layout.q_in)], dim=1)
        return circulant[:, : layout.q_in]

    def apply(self, x: Tensor, tables: Tensors, layout: CdvftLayout) -> Tensor:
        """irfft(sum_j S_j * rfft(a_1 x)_j) * a_3, then one square circulant and diagonal for each further factor."""
        diag_out = tables["diag_out"]  # [..., m-1, d_out]
        y = _padded(x * tables["diag_in"], layout)
        y = y.reshape(*y.shape[:-1], layout.q_in, layout.p)
        y = block_circulant(y, tables["spectrum"], layout.p)
        y = y.flatten(-2)[..., : layout.d_out] * diag_out[..., 0, :]
        for k in range(diag_out.shape[-2] - 1):
            square = tables["spectrum_sq"][..., k, None, None, :]  # [..., 1, 1, d_out//2+1]
            y = block_circulant(y.unsqueeze(-2), square, layout.d_out).squeeze(-2) * diag_out[..., k + 1, :]
        return y

    def adder(self, tables: Tensors, layout: CdvftLayout, kernel: "Wanted" = "auto") -> Adder | None:
        from cdvft.kernels import make_adder

        return make_adder(tables, layout, kernel)

    def dense(self, tensors: Tensors, site: Site, spec: CdvftSpec) -> Tensor:
        """dW from the definition, padding included; no FFT."""
        weight = _block_matrix(tensors["cdvft_circ"].double(), site, spec)
        diag_out = tensors["cdvft_diag_out"].double()
        weight = diag_out[0, :, None] * weight * tensors["cdvft_diag_in"].double()
        for k in range(spec.num_factors - 2):
            square = circulant_rows(tensors["cdvft_circ_sq"][k].double(), spec.circulant_convention, site.d_out)
            weight = diag_out[k + 1, :, None] * (square @ weight)
        return spec.alpha * weight

    def reference(self, x: Tensor, tensors: Tensors, site: Site, spec: CdvftSpec) -> Tensor:
        """Factor by factor: no product of two matrices, however many factors there are."""
        diag_out = tensors["cdvft_diag_out"].double()
        y = (x * tensors["cdvft_diag_in"].double()) @ _block_matrix(tensors["cdvft_circ"].double(), site, spec).T
        y = y * diag_out[0]
        for k in range(spec.num_factors - 2):
            square = circulant_rows(tensors["cdvft_circ_sq"][k].double(), spec.circulant_convention, site.d_out)
            y = (y @ square.T) * diag_out[k + 1]
        return spec.alpha * y

    def flops(self, site: Site, spec: CdvftSpec) -> float:
        """Real FFTs of the input's and the output's blocks, 8 for each complex product that is summed, the diagonals;
        the circulants' own FFTs are done once, at load."""
        p, (q_out, q_in) = spec.partition_size, spec.grid(site)
        first = (q_in + q_out) * fft_flops(p) + 8.0 * q_out * q_in * (p // 2 + 1) + site.d_in + site.d_out
        further = 2 * fft_flops(site.d_out) + 6.0 * (site.d_out // 2 + 1) + site.d_out
        return first + (spec.num_factors - 2) * further

    def paper_flops(self, site: Site, spec: CdvftSpec) -> float:
        """5 N log2 N per length-N FFT (inputs, circulants, outputs, as the paper counts), 2 per input and output."""
        p, d_out = spec.partition_size, site.d_out
        q_out, q_in = spec.grid(site)
        first = (q_in + q_out * q_in + q_out) * 5 * p * math.log2(p) + 2 * site.d_in + 2 * d_out
        return first + (spec.num_factors - 2) * (3 * 5 * d_out * math.log2(d_out) + 3 * d_out)


def fresh_partition_size(site: Site) -> int:
    """For a new adapter: the shorter side, padded where it does not divide the longer one. The greatest common divisor,
    which a config means that says nothing, would need d_in d_out / p numbers: 4096 x 11008 more than a LoRA of rank 8.
    """
    return min(site.d_in, site.d_out)


def _padded(x: Tensor, layout: CdvftLayout) -> Tensor:
    extra = layout.q_in * layout.p - layout.d_in
    if extra == 0:
        return x
    if layout.cyclic:
        return x[..., torch.arange(layout.q_in * layout.p, device=x.device) % layout.d_in]
    return torch.nn.functional.pad(x, (0, extra))


def _block_matrix(grid: Tensor, site: Site, spec: CdvftSpec) -> Tensor:
    """The first circulant factor, `[q_out, q_in, p] -> [d_out, d_in]`; temporaries are not much larger than the result.

    Rows beyond d_out are dropped, columns beyond d_in dropped (zero padding) or added to those they repeat (cyclic).
    """
    grid = grid[: -(-site.d_out // spec.partition_size)]
    q_out, q_in, p = grid.shape
    rows = min(p, site.d_out)
    if q_in * p == site.d_in:  # nothing is padded: all columns at once, each where it belongs
        blocks = circulant_rows(grid, spec.circulant_convention, rows)
        return blocks.transpose(1, 2).reshape(q_out * rows, -1)[: site.d_out]
    weight = grid.new_zeros(site.d_out, site.d_in)
    together, step = max(1, site.d_in // p), min(p, site.d_in)  # block columns at once; columns of a block at once
    for j in range(0, q_in, together):
        blocks = circulant_rows(grid[:, j : j + together], spec.circulant_convention, rows)  # [q_out, w, rows, p]
        for s in range(0, p, step):
            first = j * p + s  # column of the padded matrix
            if spec.padding == "zero" and first >= site.d_in:
                return weight
            part = blocks[..., s : s + step].transpose(1, 2).reshape(q_out * rows, -1)[: site.d_out]
            start = first % site.d_in
            before = part[:, : site.d_in - start]
            weight[:, start : start + before.shape[1]] += before
            if spec.padding == "cyclic":
                after = part[:, site.d_in - start :]
                weight[:, : after.shape[1]] += after
    return weight


def _check_site_shape(shapes: object, site: Site) -> None:
    if shapes is None:
        return
    if not isinstance(shapes, dict) or len(shapes) > MAX_SITES:
        raise InvalidAdapter(
            f"adapter_config.json: site_shapes must map module names to [d_out, d_in], at most {MAX_SITES} of them"
        )
    for name, shape in shapes.items():
        if name.endswith(site.name) and _names_site(name, site.name) and shape != [site.d_out, site.d_in]:
            raise InvalidAdapter(
                f"adapter_config.json: site_shapes of {short(name)} is {short(shape)}, "
                f"the base has [{site.d_out}, {site.d_in}]"
            )


def _names_site(full: str, name: str) -> bool:
    return full == name or full.endswith("." + name)
