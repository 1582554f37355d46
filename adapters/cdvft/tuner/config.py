"""What a PEFT user says about an adapter; saved as adapter_config.json, which the server reads unchanged."""

import math
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal

from peft import PeftConfig

from cdvft.errors import InvalidAdapter
from cdvft.methods.base import Method
from cdvft.methods.cdvft import Cdvft, fresh_partition_size
from cdvft.methods.lamda import Lamda
from cdvft.methods.sdctft import Sdctft
from cdvft.patterns import lookup
from cdvft.site import Site
from cdvft.tuner.registry import peft_type

__all__ = ["CDVFTConfig", "LaMDAConfig", "MethodConfig", "SDCTFTConfig"]

ANY = Site("any", 1 << 20, 1 << 20)  # a layer that every value fits that could fit one


@dataclass
class MethodConfig(PeftConfig):
    """What every method's configuration has: which layers, and what the server wants to know besides tensors.

    `target_modules`: names or their ends, a pattern, or "all-linear"; None takes PEFT's default for LoRA (mostly the
    query and value projections). `exclude_modules`, `layers_to_transform`, `layers_pattern`, `modules_to_save` as in
    PEFT. `labels` (in head order; taken from the model's `id2label` where it has names of its own) and `max_length`
    (tokens; what your training truncated to) go with classifiers. `base_digest` is filled in from the model.
    `init_weights` False starts away from dW = 0, for tests.
    """

    method: ClassVar[Method[Any]]
    target_modules: list[str] | str | None = None
    exclude_modules: list[str] | str | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    modules_to_save: list[str] | None = None
    init_weights: bool = True
    labels: list[str] | None = None
    problem_type: str | None = None
    head: dict[str, str] | None = None
    max_length: int | None = None
    base_digest: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = peft_type(self.method.name)
        try:
            self.method.spec({**self.method_options(), "site_shapes": None}, ANY)
        except InvalidAdapter as error:
            raise ValueError(str(error).removeprefix("adapter_config.json: ")) from None
        for name in ("target_modules", "exclude_modules"):
            value = getattr(self, name)
            if isinstance(value, list | tuple):
                setattr(self, name, set(value))
        if isinstance(self.target_modules, str) and self.target_modules != "all-linear":
            for name in ("layers_to_transform", "layers_pattern"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name} needs target_modules as a list of names, it is a pattern")

    def method_options(self) -> dict[str, Any]:
        """The method's own keys, as adapter_config.json has them."""
        return {
            field.name: getattr(self, field.name) for field in fields(self) if field.name in self.method.config_keys
        }


@dataclass
class CDVFTConfig(MethodConfig):
    """CDVFT (arXiv 2505.00580): dW = alpha * diag circ diag ..., `num_factors` diagonals and one circulant less.

    `partition_size`: block length p of the first circulant, one for all layers, or by layer name or pattern in
    `partition_size_pattern`; None: a layer's shorter side, filled in from the model. `block_grid`, `padding` and
    `circulant_convention` matter for checkpoints of other code; leave them. `site_shapes` is filled in from the model.
    Raises ValueError for values that no layer could take.
    """

    method: ClassVar[Method[Any]] = Cdvft()
    num_factors: int = 2
    partition_size: int | None = None
    partition_size_pattern: dict[str, int] = field(default_factory=dict)
    alpha: float = 1.0
    circulant_convention: Literal["first_col", "first_row"] = "first_col"
    block_grid: Literal["rect", "square"] = "rect"
    padding: Literal["zero", "cyclic"] = "zero"
    site_shapes: dict[str, list[int]] = field(default_factory=dict)

    def choose_partition_size(self, site: Site) -> None:
        """Fill in the layer's own where a new adapter leaves it open; not for one that was loaded."""
        loaded = any(f".{site.name}".endswith(f".{known}") for known in self.site_shapes)
        if self.partition_size is not None or loaded:
            return
        chosen = fresh_partition_size(site)
        given = lookup(self.partition_size_pattern, site.name, "partition_size_pattern")
        if given is None and chosen != math.gcd(site.d_in, site.d_out):  # which a config that says nothing means
            self.partition_size_pattern[site.name] = chosen


@dataclass
class SDCTFTConfig(MethodConfig):
    """sDCTFT (arXiv 2410.09103): `n_frequency` coefficients of a discrete cosine transform for each layer, 70% of them
    where the layer's own weight has most energy, the others drawn; by layer in `n_frequency_pattern`. dW is the
    orthonormal transform back, times `alpha`. Raises ValueError for values that no layer could take.
    """

    method: ClassVar[Method[Any]] = Sdctft()
    n_frequency: int = 1000
    n_frequency_pattern: dict[str, int] = field(default_factory=dict)
    alpha: float = 1.0
    dct_norm: Literal["ortho"] = "ortho"


@dataclass
class LaMDAConfig(MethodConfig):
    """LaMDA (arXiv 2406.12832): dW = lora_alpha / r * B sigma A; A and B begin as the weight's singular vectors, A
    stays, sigma begins at zero. The paper freezes B after the first part of the training: `requires_grad_(False)` on
    the parameters named `lamda_B`. Raises ValueError for values that no layer could take.
    """

    method: ClassVar[Method[Any]] = Lamda()
    r: int = 32
    lora_alpha: float | None = None  # r
