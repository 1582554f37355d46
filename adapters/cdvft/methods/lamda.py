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
    untrained: ClassVar[frozenset[str]] = frozenset({A})
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

    def init(
        self, site: Site, spec: LamdaSpec, generator: Generator, weight: Tensor | None = None
    ) -> dict[str, Tensor]:
        """sigma zero; B and A the weight's first left and right singular vectors, else normal of length about 1."""
        sigma = torch.zeros(spec.rank, spec.rank)
        a = torch.randn(spec.rank, site.d_in, generator=generator) * site.d_in**-0.5
        b = torch.randn(site.d_out, spec.rank, generator=generator) * site.d_out**-0.5
        if weight is not None and spec.rank <= min(site.d_in, site.d_out):
            b, a = _singular_vectors(weight.detach().cpu().double(), a.double())
        return {A: a.float(), SIGMA: sigma, B: b.float()}

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

    def flops(self, site: Site, spec: LamdaSpec) -> float:
        """Folded: LoRA's."""
        return 2.0 * spec.rank * (site.d_in + site.d_out)


def _singular_vectors(weight: Tensor, start: Tensor, steps: int = 8) -> tuple[Tensor, Tensor]:
    """About the first r left and right singular vectors, `[d_out, r]` and `[r, d_in]`, by subspace iteration."""
    basis = start.T
    for _ in range(steps):
        basis = torch.linalg.qr(weight.T @ torch.linalg.qr(weight @ basis).Q).Q
    left, _, right = torch.linalg.svd(weight @ basis, full_matrices=False)
    return left, right @ basis.T
