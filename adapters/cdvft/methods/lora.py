"""LoRA (arXiv 2106.09685): dW = scaling * B A; scaling = alpha / r, with rsLoRA (arXiv 2312.03732) alpha / sqrt(r)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor

from cdvft.methods.base import Method, Tensors
from cdvft.methods.values import flag, integer, number, pattern_of, patterned
from cdvft.patterns import lookup
from cdvft.site import Site

__all__ = ["Lora", "LoraSpec", "low_rank"]

A, B = "lora_A.weight", "lora_B.weight"
MAX_RANK = 1 << 16


@dataclass(frozen=True)
class LoraSpec:
    """Hyper-parameters of one site."""

    rank: int
    lora_alpha: float
    use_rslora: bool = False

    @property
    def scaling(self) -> float:
        return self.lora_alpha / (math.sqrt(self.rank) if self.use_rslora else self.rank)


class Lora(Method[LoraSpec]):
    """Ranks and alphas may differ by site; PEFT's patterns are read as PEFT reads them."""

    name: ClassVar[str] = "lora"
    peft_type: ClassVar[str] = "LORA"
    config_keys: ClassVar[frozenset[str]] = frozenset("r lora_alpha use_rslora rank_pattern alpha_pattern".split())
    view_tokens: ClassVar[int] = 4  # a row's matrices are r times a vector: gathering them for each token is dear

    def spec(self, config: Mapping[str, Any], site: Site) -> LoraSpec:
        ranks = pattern_of(config, "rank_pattern", lambda own: integer(own, "rank_pattern", None, 1, MAX_RANK))
        alphas = pattern_of(config, "alpha_pattern", lambda own: number(own, "alpha_pattern", 0.0))
        rank = lookup(ranks, site.name, "rank_pattern")
        alpha = lookup(alphas, site.name, "alpha_pattern")
        return LoraSpec(
            rank=rank or integer(config, "r", 8, 1, MAX_RANK) or 8,
            lora_alpha=number(config, "lora_alpha", 8.0) if alpha is None else float(alpha),
            use_rslora=flag(config, "use_rslora"),
        )

    def config(self, specs: Mapping[Site, LoraSpec]) -> dict[str, Any]:
        return {
            "use_rslora": next(iter(specs.values())).use_rslora,
            **patterned({site: spec.rank for site, spec in specs.items()}, "r", "rank_pattern"),
            **patterned({site: spec.lora_alpha for site, spec in specs.items()}, "lora_alpha", "alpha_pattern"),
        }

    def examples(self, site: Site) -> list[LoraSpec]:
        return [LoraSpec(rank, alpha, rs) for rank in (1, 3, 8) for alpha in (16.0, 0.7) for rs in (False, True)]

    def shapes(self, site: Site, spec: LoraSpec) -> dict[str, tuple[int, ...]]:
        return {A: (spec.rank, site.d_in), B: (site.d_out, spec.rank)}

    def init(self, site: Site, spec: LoraSpec, generator: Generator, weight: Tensor | None = None) -> dict[str, Tensor]:
        """B zero, A uniform within 1 / sqrt(d_in), as PEFT's default."""
        shapes = self.shapes(site, spec)
        uniform = torch.rand(shapes[A], generator=generator) * 2 - 1
        return {A: uniform * site.d_in**-0.5, B: torch.zeros(shapes[B])}

    def layout(self, site: Site, spec: LoraSpec) -> tuple[()]:
        return ()

    def prepare(self, tensors: Tensors, site: Site, spec: LoraSpec) -> dict[str, Tensor]:
        """`a [r, d_in]`, `b [d_out, r]` with the scaling in it."""
        return {"a": tensors[A], "b": tensors[B] * spec.scaling}

    def apply(self, x: Tensor, tables: Tensors, layout: tuple[()]) -> Tensor:
        return low_rank(x, tables["a"], tables["b"])

    def dense(self, tensors: Tensors, site: Site, spec: LoraSpec) -> Tensor:
        return spec.scaling * (tensors[B].double() @ tensors[A].double())

    def reference(self, x: Tensor, tensors: Tensors, site: Site, spec: LoraSpec) -> Tensor:
        return spec.scaling * ((x @ tensors[A].double().T) @ tensors[B].double().T)

    def flops(self, site: Site, spec: LoraSpec) -> float:
        """Two thin products."""
        return 2.0 * spec.rank * (site.d_in + site.d_out)

    def paper_flops(self, site: Site, spec: LoraSpec) -> float:
        """A multiply-add counted as one, and the addition to the output."""
        return float(spec.rank * (site.d_in + site.d_out) + site.d_out)


def low_rank(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """`b (a x)`: `x [..., d_in]`, `a [..., r, d_in]`, `b [..., d_out, r]`, leading axes broadcast -> `[..., d_out]`."""
    if a.dim() == 2:
        return (x @ a.T) @ b.T
    return (b @ (a @ x.unsqueeze(-1))).squeeze(-1)
