"""What an adapter is once it was read: its spec (everything an answer depends on besides tensors) and its tensors."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from torch import Tensor

from cdvft.heads import HeadSpec
from cdvft.methods import Method, method_named
from cdvft.site import Site

__all__ = ["Adapter", "AdapterSpec", "Task"]

Task = Literal["lm", "classification", "regression"]


@dataclass(frozen=True)
class AdapterSpec:
    """`sites` maps each site to its method's hyper-parameters; `head` is None exactly for task "lm"."""

    method: str
    sites: Mapping[Site, Any]
    task: Task = "lm"
    head: HeadSpec | None = None
    labels: tuple[str, ...] | None = None  # in head order; classification only
    max_length: int | None = None  # tokens of one classify input, special ones included
    template: str | None = None  # Jinja chat template


@dataclass(frozen=True)
class Adapter:
    """One trained checkpoint. `tensors[site.name][tensor]` are fp32 on the CPU, as on disk; `head[tensor]` likewise.

    `digest` is "sha256:<64 hex>"; `base_verified` says whether the checkpoint named this base's digest; `frozen` are
    the method's untrained tensors (`Method.frozen`), fp32 or int64.
    """

    spec: AdapterSpec
    tensors: Mapping[str, Mapping[str, Tensor]]
    head: Mapping[str, Tensor]
    digest: str
    base_verified: bool
    frozen: Mapping[str, Tensor] = field(default_factory=dict)

    @cached_property
    def method(self) -> Method[Any]:
        return method_named(self.spec.method)

    @property
    def num_parameters(self) -> int:
        """Trained numbers without the head."""
        return sum(self.method.num_parameters(site, spec) for site, spec in self.spec.sites.items())

    @property
    def head_parameters(self) -> int:
        return sum(tensor.numel() for tensor in self.head.values())

    def site_tensors(self, site: Site) -> dict[str, Tensor]:
        """The site's tensors and its share of the frozen ones."""
        return {**self.tensors[site.name], **self.method.frozen_of(self.frozen, site, self.spec.sites[site])}

    def dense(self, site: Site) -> Tensor:
        """dW of one site, `[d_out, d_in]` float64."""
        return self.method.dense(self.site_tensors(site), site, self.spec.sites[site])
