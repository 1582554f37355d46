"""VeRA (arXiv 2310.11454): dW = diag(lambda_b) B diag(lambda_d) A; A and B random, frozen, common to all sites."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor

from cdvft.errors import InvalidAdapter
from cdvft.methods.base import Method, Tensors
from cdvft.methods.values import flag, integer
from cdvft.site import Site

__all__ = ["Vera", "VeraSpec"]

A, B = "vera_A", "vera_B"
LAMBDA_B, LAMBDA_D = "vera_lambda_b", "vera_lambda_d"
MAX_RANK = 1 << 16
D_INITIAL = 0.1


@dataclass(frozen=True)
class VeraSpec:
    """One rank and one key for all sites of an adapter."""

    rank: int
    projection_prng_key: int = 0


class Vera(Method[VeraSpec]):
    """The projections are saved in the checkpoint or drawn from the key as PEFT draws them; every adapter that has the
    same ones shares a bank, which holds them once. A site takes the first d_in columns of A and d_out rows of B.
    """

    name: ClassVar[str] = "vera"
    peft_type: ClassVar[str] = "VERA"
    config_keys: ClassVar[frozenset[str]] = frozenset({"r", "projection_prng_key", "save_projection"})
    frozen_names: ClassVar[frozenset[str]] = frozenset({A, B})
    shared_tables: ClassVar[frozenset[str]] = frozenset({"a", "b"})

    def spec(self, config: Mapping[str, Any], site: Site) -> VeraSpec:
        flag(config, "save_projection")
        return VeraSpec(
            rank=integer(config, "r", 256, 1, MAX_RANK) or 256,
            projection_prng_key=integer(config, "projection_prng_key", 0, 0, 2**63 - 1) or 0,
        )

    def config(self, specs: Mapping[Site, VeraSpec]) -> dict[str, Any]:
        first = next(iter(specs.values()))
        return {"r": first.rank, "projection_prng_key": first.projection_prng_key, "save_projection": True}

    def examples(self, site: Site) -> list[VeraSpec]:
        return [VeraSpec(rank, key) for rank in (1, 3, 8) for key in (0, 42)]

    def shapes(self, site: Site, spec: VeraSpec) -> dict[str, tuple[int, ...]]:
        return {LAMBDA_B: (site.d_out,), LAMBDA_D: (spec.rank,)}

    def init(self, site: Site, spec: VeraSpec, generator: Generator, weight: Tensor | None = None) -> dict[str, Tensor]:
        return {LAMBDA_B: torch.zeros(site.d_out), LAMBDA_D: torch.full((spec.rank,), D_INITIAL)}

    def frozen(
        self, specs: Mapping[Site, VeraSpec], generator: Generator, weights: Tensors | None = None
    ) -> dict[str, Tensor]:
        """Uniform within sqrt(6 / fan_in), A before B, from one generator: PEFT's, bit for bit."""
        spec = next(iter(specs.values()))
        own = Generator().manual_seed(spec.projection_prng_key)
        widest, tallest = max(site.d_in for site in specs), max(site.d_out for site in specs)
        bounds = math.sqrt(6 / widest), math.sqrt(6 / spec.rank)
        return {
            A: torch.empty(spec.rank, widest).uniform_(-bounds[0], bounds[0], generator=own),
            B: torch.empty(tallest, spec.rank).uniform_(-bounds[1], bounds[1], generator=own),
        }

    def check_frozen(self, frozen: Tensors, specs: Mapping[Site, VeraSpec]) -> None:
        """Saved projections may be larger than these sites need: PEFT shares them between adapters."""
        rank = next(iter(specs.values())).rank
        widest, tallest = max(site.d_in for site in specs), max(site.d_out for site in specs)
        a, b = (tuple(frozen[name].shape) if name in frozen else None for name in (A, B))
        if a is None or len(a) != 2 or a[0] != rank or a[1] < widest:
            raise InvalidAdapter(f"{A} is {a}, it must be [{rank}, {widest}] (r, the largest input)")
        if b is None or len(b) != 2 or b[1] != rank or b[0] < tallest:
            raise InvalidAdapter(f"{B} is {b}, it must be [{tallest}, {rank}] (the largest output, r)")
        for name, tensor in frozen.items():
            if name not in (A, B) or not tensor.is_floating_point():
                raise InvalidAdapter(f"{name} ({tensor.dtype}) is not one of VeRA's projections {A}, {B}")

    def frozen_of(self, frozen: Tensors, site: Site, spec: VeraSpec) -> dict[str, Tensor]:
        return {A: frozen[A][:, : site.d_in], B: frozen[B][: site.d_out]}

    def layout(self, site: Site, spec: VeraSpec) -> tuple[()]:
        return ()

    def prepare(self, tensors: Tensors, site: Site, spec: VeraSpec) -> dict[str, Tensor]:
        """`lambda_b [d_out]`, `lambda_d [r]`; shared by the bank: `a [r, d_in]`, `b [d_out, r]`."""
        own = {"lambda_b": tensors[LAMBDA_B], "lambda_d": tensors[LAMBDA_D]}
        return {**own, "a": tensors[A], "b": tensors[B]}

    def apply(self, x: Tensor, tables: Tensors, layout: tuple[()]) -> Tensor:
        """Every row's x goes through the same two matrices: a mixed batch costs what one adapter costs."""
        a, b = tables["a"].to(x.dtype), tables["b"].to(x.dtype)
        return ((x @ a.T) * tables["lambda_d"] @ b.T) * tables["lambda_b"]

    def dense(self, tensors: Tensors, site: Site, spec: VeraSpec) -> Tensor:
        b = tensors[LAMBDA_B].double()[:, None] * tensors[B].double()
        return (b * tensors[LAMBDA_D].double()) @ tensors[A].double()

    def reference(self, x: Tensor, tensors: Tensors, site: Site, spec: VeraSpec) -> Tensor:
        inner = (x @ tensors[A].double().T) * tensors[LAMBDA_D].double()
        return (inner @ tensors[B].double().T) * tensors[LAMBDA_B].double()

    def flops(self, site: Site, spec: VeraSpec) -> float:
        return 2.0 * spec.rank * (site.d_in + site.d_out) + spec.rank + site.d_out

    def paper_flops(self, site: Site, spec: VeraSpec) -> float:
        """A multiply-add counted as one: LoRA's, and the two scalings by vectors."""
        return float(spec.rank * (site.d_in + site.d_out) + site.d_out + spec.rank + site.d_out)
