"""LaMDA (arXiv 2406.12832): dW = alpha / r * B sigma A; A frozen, B trained at first, the square sigma throughout."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor

from cdvft.methods.base import Method, Tensors
from cdvft.methods.lora import low_rank
from cdvft.methods.values import integer, number
from cdvft.site import Site

__all__ = ["Lamda", "LamdaSpec"]

A, SIGMA, B = "lamda_A", "lamda_sigma", "lamda_B"
MAX_RANK = 1 << 16


@dataclass(frozen=True)
class LamdaSpec:
    rank: int
    lora_alpha: float

    @property
    def scaling(self) -> float:
        return self.lora_alpha / self.rank


class Lamda(Method[LamdaSpec]):
    """Folded on activation, B' = scaling B sigma, and served as a LoRA."""

    name: ClassVar[str] = "lamda"
    peft_type: ClassVar[str] = "LAMDA"
    config_keys: ClassVar[frozenset[str]] = frozenset({"r", "lora_alpha"})
    view_tokens: ClassVar[int] = 4

    def spec(self, config: Mapping[str, Any], site: Site) -> LamdaSpec:
        rank = integer(config, "r", 32, 1, MAX_RANK) or 32
        return LamdaSpec(rank, number(config, "lora_alpha", float(rank)))

    def config(self, specs: Mapping[Site, LamdaSpec]) -> dict[str, Any]:
        first = next(iter(specs.values()))
        return {"r": first.rank, "lora_alpha": first.lora_alpha}

    def examples(self, site: Site) -> list[LamdaSpec]:
        return [LamdaSpec(rank, alpha) for rank in (1, 3, 8) for alpha in (16.0, 0.7)]

    def shapes(self, site: Site, spec: LamdaSpec) -> dict[str, tuple[int, ...]]:
        return {A: (spec.rank, site.d_in), SIGMA: (spec.rank, spec.rank), B: (site.d_out, spec.rank)}

    def init(self, site: Site, spec: LamdaSpec, generator: Generator) -> dict[str, Tensor]:
        """sigma zero; A and B normal with rows, columns of expected length 1."""
        shapes = self.shapes(site, spec)
        return {
            A: torch.randn(shapes[A], generator=generator) * site.d_in**-0.5,
            SIGMA: torch.zeros(shapes[SIGMA]),
            B: torch.randn(shapes[B], generator=generator) * site.d_out**-0.5,
        }

    def layout(self, site: Site, spec: LamdaSpec) -> tuple[()]:
        return ()

    def prepare(self, tensors: Tensors, site: Site, spec: LamdaSpec) -> dict[str, Tensor]:
        """`a [r, d_in]`, `b [d_out, r]` with sigma and the scaling in it."""
        return {"a": tensors[A], "b": (tensors[B] @ tensors[SIGMA]) * spec.scaling}

    def apply(self, x: Tensor, tables: Tensors, layout: tuple[()]) -> Tensor:
        return low_rank(x, tables["a"], tables["b"])

    def dense(self, tensors: Tensors, site: Site, spec: LamdaSpec) -> Tensor:
        return spec.scaling * (tensors[B].double() @ tensors[SIGMA].double() @ tensors[A].double())

    def reference(self, x: Tensor, tensors: Tensors, site: Site, spec: LamdaSpec) -> Tensor:
        inner = (x @ tensors[A].double().T) @ tensors[SIGMA].double().T
        return spec.scaling * (inner @ tensors[B].double().T)

    def num_parameters(self, site: Site, spec: LamdaSpec) -> int:
        """sigma and B; A is never trained."""
        return spec.rank * (spec.rank + site.d_out)

    def flops(self, site: Site, spec: LamdaSpec) -> float:
        """Folded, one multiply-add counted as one."""
        return float(spec.rank * (site.d_in + site.d_out))
