"""Recipes that the trainer does not offer, for the sweep that decided against them: each changes its own process."""

import math
from collections.abc import Callable
from typing import Any

import torch
from cdvft.methods.cdvft import Cdvft, CdvftSpec
from cdvft.site import Site
from cdvft.train import loop
from torch import Generator, Tensor

__all__ = ["cosine", "zero_circulant"]


def zero_circulant() -> None:
    """Start with the first circulant at zero and every diagonal at one."""
    whole: Callable[..., Any] = Cdvft.init

    def init(self: Cdvft, site: Site, spec: CdvftSpec, generator: Generator) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = whole(self, site, spec, generator)
        tensors["cdvft_diag_out"] = torch.ones_like(tensors["cdvft_diag_out"])
        tensors["cdvft_circ"] = torch.zeros_like(tensors["cdvft_circ"])
        return tensors

    Cdvft.init = init  # type: ignore[method-assign]


def cosine() -> None:
    """Half a cosine to zero after the warm-up instead of a line."""

    def decay(step: int, steps: int) -> float:
        warm_up = max(1.0, loop.WARM_UP * steps)
        if step < warm_up:
            return (step + 1) / warm_up
        return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1.0, steps - warm_up)))

    loop._decay = decay
