"""W + dW in the base's own layers: the plain model that an adapter stands for, and the way back bit for bit."""

from types import TracebackType
from typing import Self

import torch
from torch import Tensor, nn

from cdvft.adapter import Adapter
from cdvft.errors import UnsupportedBase
from cdvft.site import Site

__all__ = ["Merged", "merge", "merged_weights"]

MARK = "cdvft_merged"  # attribute of a merged linear layer: the adapter's digest


def merge(model: nn.Module, adapter: Adapter) -> "Merged":
    """Add the adapter's dW to the site layers of `model` (a backbone; its layers plain or adapted), in float64, rounded
    once to the layer's dtype. Heads are not touched. Use as a context manager, or call `unmerge()`.

    Raises RuntimeError where a layer carries an adapter already, UnsupportedBase where its weight cannot be added to.
    """
    layers = {site: _plain_linear(model, site) for site in sorted(adapter.spec.sites)}
    for site, linear in layers.items():
        if hasattr(linear, MARK):
            raise RuntimeError(f"{site.name} is merged with {getattr(linear, MARK)} already; unmerge that first")
    merged = Merged()
    try:
        for site, linear in layers.items():
            merged.add(linear, adapter.dense(site), adapter.digest)
    except BaseException:
        merged.unmerge()
        raise
    return merged


@torch.no_grad()
def merged_weights(model: nn.Module, adapter: Adapter) -> dict[str, Tensor]:
    """W + dW of every site, `[d_out, d_in]` by site name, computed in float64 and rounded once to the layer's dtype;
    the model stays as it is. Raises UnsupportedBase as `merge`.
    """
    return {site.name: _sum(_plain_linear(model, site).weight, adapter.dense(site)) for site in adapter.spec.sites}


def _sum(weight: Tensor, delta: Tensor) -> Tensor:
    return (weight.double() + delta.to(weight.device)).to(weight.dtype)


class Merged:
    """The original weights of the merged layers, on their device."""

    def __init__(self) -> None:
        self._originals: list[tuple[nn.Linear, Tensor]] = []

    @torch.no_grad()
    def add(self, linear: nn.Linear, delta: Tensor, digest: str) -> None:
        """Remember `weight [d_out, d_in]`, then add `delta` to it."""
        weight = linear.weight
        changed = _sum(weight, delta)
        self._originals.append((linear, weight.detach().clone()))
        setattr(linear, MARK, digest)
        weight.copy_(changed)

    @torch.no_grad()
    def unmerge(self) -> None:
        """Put the original weights back, bit for bit. Calling it again does nothing."""
        for linear, original in self._originals:
            linear.weight.copy_(original)
            delattr(linear, MARK)
        self._originals.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.unmerge()


def _plain_linear(model: nn.Module, site: Site) -> nn.Linear:
    module = model.get_submodule(site.name)
    linear = getattr(module, "linear", module)  # AdaptedLinear and TrainableLinear keep the base's layer there
    if not isinstance(linear, nn.Linear) or not linear.weight.is_floating_point():
        raise UnsupportedBase(
            f"{site.name} is a {type(linear).__name__}: dW can only be merged into a plain linear layer"
        )
    if tuple(linear.weight.shape) != (site.d_out, site.d_in):
        raise UnsupportedBase(
            f"{site.name} is {list(linear.weight.shape)}, the adapter is for [{site.d_out}, {site.d_in}]"
        )
    return linear
