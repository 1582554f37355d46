"""C3A (arXiv 2407.19342): dW is a grid of circulant blocks given by their first rows, divided by d_in."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Generator, Tensor

from cdvft.circulant import circulant_rows, transposed
from cdvft.errors import InvalidAdapter
from cdvft.fft import block_circulant, circulant_spectrum
from cdvft.methods.base import Adder, Method, Tensors, fft_flops
from cdvft.methods.cdvft import CdvftLayout
from cdvft.methods.values import integer, pattern_of, patterned
from cdvft.patterns import lookup
from cdvft.site import Site

if TYPE_CHECKING:
    from cdvft.kernels import Wanted

__all__ = ["C3a", "C3aLayout", "C3aSpec"]

KERNEL = "c3a_kernel"
MAX_BLOCK = 1 << 20


@dataclass(frozen=True)
class C3aSpec:
    """`block_size` divides both sides of the site."""

    block_size: int


@dataclass(frozen=True)
class C3aLayout:
    """Block length, and blocks of the input."""

    b: int
    q_in: int


class C3a(Method[C3aSpec]):
    """Circulant blocks without diagonals; the spectra are the serving form, as CDVFT's."""

    name: ClassVar[str] = "c3a"
    peft_type: ClassVar[str] = "C3A"
    config_keys: ClassVar[frozenset[str]] = frozenset({"block_size", "block_size_pattern"})

    def spec(self, config: Mapping[str, Any], site: Site) -> C3aSpec:
        key = "block_size_pattern"
        sizes = pattern_of(config, key, lambda own: integer(own, key, None, 1, MAX_BLOCK))
        size = lookup(sizes, site.name, key) or integer(config, "block_size", 256, 1, MAX_BLOCK) or 256
        if site.d_in % size or site.d_out % size:
            raise InvalidAdapter(
                f"adapter_config.json: block_size {size} does not divide {site.name} [{site.d_out}, {site.d_in}]"
            )
        return C3aSpec(size)

    def config(self, specs: Mapping[Site, C3aSpec]) -> dict[str, Any]:
        sizes = {site: spec.block_size for site, spec in specs.items()}
        return patterned(sizes, "block_size", "block_size_pattern")

    def examples(self, site: Site) -> list[C3aSpec]:
        widest = math.gcd(site.d_in, site.d_out)
        return [C3aSpec(size) for size in range(1, widest + 1) if widest % size == 0]

    def shapes(self, site: Site, spec: C3aSpec) -> dict[str, tuple[int, ...]]:
        return {KERNEL: (site.d_out // spec.block_size, site.d_in // spec.block_size, spec.block_size)}

    def init(self, site: Site, spec: C3aSpec, generator: Generator, weight: Tensor | None = None) -> dict[str, Tensor]:
        """Zero: one factor alone, its gradient lives."""
        return {KERNEL: torch.zeros(self.shapes(site, spec)[KERNEL])}

    def layout(self, site: Site, spec: C3aSpec) -> C3aLayout:
        return C3aLayout(spec.block_size, site.d_in // spec.block_size)

    def prepare(self, tensors: Tensors, site: Site, spec: C3aSpec) -> dict[str, Tensor]:
        """`spectrum [q_out, q_in, b//2+1]`, complex, with 1 / d_in in it."""
        return {"spectrum": circulant_spectrum(transposed(tensors[KERNEL]) / site.d_in)}

    def apply(self, x: Tensor, tables: Tensors, layout: C3aLayout) -> Tensor:
        y = x.reshape(*x.shape[:-1], layout.q_in, layout.b)
        return block_circulant(y, tables["spectrum"], layout.b).flatten(-2)

    def adder(self, tables: Tensors, layout: C3aLayout, kernel: "Wanted" = "auto") -> Adder | None:
        from cdvft.kernels import make_adder

        b, (q_out, q_in) = layout.b, tables["spectrum"].shape[-3:-1]
        return make_adder(tables, CdvftLayout(q_in * b, q_out * b, b, q_in, cyclic=False), kernel)

    def dense(self, tensors: Tensors, site: Site, spec: C3aSpec) -> Tensor:
        blocks = circulant_rows(tensors[KERNEL].double(), "first_row", spec.block_size)  # [q_out, q_in, b, b]
        return blocks.transpose(1, 2).reshape(site.d_out, site.d_in) / site.d_in

    def flops(self, site: Site, spec: C3aSpec) -> float:
        """A real FFT for each block of the input and of the output, 8 for each complex product that is summed."""
        b = spec.block_size
        q_out, q_in = site.d_out // b, site.d_in // b
        return (q_in + q_out) * fft_flops(b) + 8.0 * q_out * q_in * (b // 2 + 1)
