"""The contract of an adapter method: one formula, one file.

`apply` is written as if there were one adapter; leading axes broadcast: the same lines serve mixed batches and train.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar

from torch import Generator, Tensor

from cdvft.errors import InvalidAdapter
from cdvft.site import Site

if TYPE_CHECKING:
    from cdvft.kernels import Wanted

__all__ = ["Adder", "Method", "SpecT", "Tensors", "fft_flops"]

Tensors = Mapping[str, Tensor]
SpecT = TypeVar("SpecT", bound=Hashable)


class Adder(Protocol):
    """Bound to the tables of one site of a bank."""

    def __call__(self, x: Tensor, y: Tensor, rows: Tensor) -> bool:
        """`y[t] += dW[rows[t]] x[t]` in place: `x [T, d_in]`, `y [T, d_out]`, `rows [T]` of integers, which the tables
        must have: nothing checks that. False: these tensors are not ones that it takes, nothing was done."""


class Method(ABC, Generic[SpecT]):
    """How vectors become a weight change dW `[d_out, d_in]` of a site.

    `SpecT` is a frozen dataclass: the hyper-parameters of one site, part of the adapter's digest.
    """

    name: ClassVar[str]  # "cdvft": as the API reports it
    peft_type: ClassVar[str]  # "CDVFT": as adapter_config.json says it
    config_keys: ClassVar[frozenset[str]]  # the keys of adapter_config.json that `spec` reads
    frozen_names: ClassVar[frozenset[str]] = frozenset()  # frozen tensors that may stand in the weights' file
    frozen_in_config: ClassVar[bool] = True  # `frozen` follows from the config: a checkpoint may lack its tensors
    shared_tables: ClassVar[frozenset[str]] = frozenset()  # made of frozen tensors only: a bank holds them once
    untrained: ClassVar[frozenset[str]] = frozenset()  # tensors of `shapes` that training leaves as they began
    view_tokens: ClassVar[int] = 64  # a segment of at least this many tokens is applied by view, not by a gather

    @abstractmethod
    def spec(self, config: Mapping[str, Any], site: Site) -> SpecT:
        """The site's hyper-parameters from adapter_config.json. Raises InvalidAdapter naming the key."""

    @abstractmethod
    def config(self, specs: Mapping[Site, SpecT]) -> dict[str, Any]:
        """The keys of adapter_config.json from which `spec` gives these specs back."""

    @abstractmethod
    def examples(self, site: Site) -> Sequence[SpecT]:
        """Hyper-parameters for a small site that reach every branch of the method: what the contract test runs over."""

    @abstractmethod
    def shapes(self, site: Site, spec: SpecT) -> dict[str, tuple[int, ...]]:
        """Tensor names and shapes on disk; an upload must have exactly these."""

    @abstractmethod
    def init(self, site: Site, spec: SpecT, generator: Generator, weight: Tensor | None = None) -> dict[str, Tensor]:
        """Fresh fp32 tensors with dW = 0 and a gradient that lives; `weight` is the base's, where it is at hand."""

    def frozen(
        self, specs: Mapping[Site, SpecT], generator: Generator, weights: Tensors | None = None
    ) -> dict[str, Tensor]:
        """Untrained tensors (indices, projections) on which those of all sites together stand, for a new adapter; from
        the specs alone where `frozen_in_config`. `weights` are the base's by site name, where they are at hand. A name
        may begin with a site's: "<site>.<tensor>".
        """
        return {}

    def check_frozen(self, frozen: Tensors, specs: Mapping[Site, SpecT]) -> None:
        """Raises InvalidAdapter for frozen tensors of a checkpoint that these specs cannot have."""
        for name in sorted(frozen):
            raise InvalidAdapter(f"{self.peft_type} has no frozen tensor {name}")

    def frozen_of(self, frozen: Tensors, site: Site, spec: SpecT) -> dict[str, Tensor]:
        """A site's share of them: `prepare`, `dense` and `reference` find it among the site's own tensors."""
        return {}

    @abstractmethod
    def layout(self, site: Site, spec: SpecT) -> Hashable:
        """What `apply` must know besides the tables; adapters share a bank where it is equal."""

    @abstractmethod
    def prepare(self, tensors: Tensors, site: Site, spec: SpecT) -> dict[str, Tensor]:
        """Disk form to serving form, once, on activation; differentiable. All zeros gives dW = 0."""

    @abstractmethod
    def apply(self, x: Tensor, tables: Tensors, layout: Any) -> Tensor:
        """`dW x` without building dW: `x [..., d_in]`, `tables` as `prepare` gives them, all but the shared ones with
        leading axes that broadcast against x's -> `[..., d_out]`, in the tables' real dtype."""

    def adder(self, tables: Tensors, layout: Any, kernel: "Wanted" = "auto") -> "Adder | None":
        """What adds changes by a kernel that reads a bank's `tables [rows, ...]` where they lie; None: none can."""
        return None

    @abstractmethod
    def dense(self, tensors: Tensors, site: Site, spec: SpecT) -> Tensor:
        """dW `[d_out, d_in]` in float64, built without FFT: the oracle, and the source of merged weights."""

    def reference(self, x: Tensor, tensors: Tensors, site: Site, spec: SpecT) -> Tensor:
        """`dense @ x` for the self-test, `x [..., d_in]` float64 -> `[..., d_out]`; override where dense is costly."""
        return x @ self.dense(tensors, site, spec).T

    @abstractmethod
    def flops(self, site: Site, spec: SpecT) -> float:
        """What serving computes for one token: 2 for a multiply-add, `fft_flops` for a real FFT."""

    def paper_flops(self, site: Site, spec: SpecT) -> float | None:
        """One token as the tables of arXiv 2505.00580 count it (see `cdvft.accounting`); None where they have none."""
        return None

    def num_parameters(self, site: Site, spec: SpecT) -> int:
        """Trained numbers of one site."""
        shapes = self.shapes(site, spec)
        return sum(math.prod(shape) for name, shape in shapes.items() if name not in self.untrained)


def fft_flops(length: int) -> float:
    """Of a real FFT: half of the 5 N log2 N that a complex one takes."""
    return 2.5 * length * math.log2(max(length, 2))
