"""What a PEFT user says about a CDVFT adapter; saved as adapter_config.json, which the server reads unchanged."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from peft import PeftConfig

from cdvft.errors import InvalidAdapter
from cdvft.methods.cdvft import Cdvft
from cdvft.site import Site
from cdvft.tuner.registry import peft_type

__all__ = ["CDVFTConfig", "MethodConfig"]


@dataclass
class MethodConfig(PeftConfig):
    """What every method's configuration has: which layers, and what the server wants to know besides tensors.

    `target_modules`: names or their ends, a pattern, or "all-linear"; None takes PEFT's default for LoRA (mostly the
    query and value projections). `exclude_modules`, `layers_to_transform`, `layers_pattern`, `modules_to_save` as in
    PEFT. `labels` (in head order; taken from the model's `id2label` where it has names of its own) and `max_length`
    (tokens; what your training truncated to) go with classifiers. `base_digest` and `site_shapes` are filled in from
    the model. `init_weights` False starts away from dW = 0, for tests.
    """

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
    site_shapes: dict[str, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("target_modules", "exclude_modules"):
            value = getattr(self, name)
            if isinstance(value, list | tuple):
                setattr(self, name, set(value))
        if isinstance(self.target_modules, str) and self.target_modules != "all-linear":
            for name in ("layers_to_transform", "layers_pattern"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name} needs target_modules as a list of names, it is a pattern")

    def method_options(self) -> Mapping[str, Any]:
        """The method's own keys, as adapter_config.json has them."""
        raise NotImplementedError


@dataclass
class CDVFTConfig(MethodConfig):
    """CDVFT (arXiv 2505.00580): dW = alpha * diag circ diag ..., `num_factors` diagonals and one circulant less.

    `partition_size`: block length p of the first circulant, one for all layers, or by layer name or pattern in
    `partition_size_pattern`; None: the greatest common divisor of a layer's sizes. `block_grid`, `padding` and
    `circulant_convention` matter for checkpoints of other code; leave them. Raises ValueError for values that no layer
    could take.
    """

    num_factors: int = 2
    partition_size: int | None = None
    partition_size_pattern: dict[str, int] = field(default_factory=dict)
    alpha: float = 1.0
    circulant_convention: Literal["first_col", "first_row"] = "first_col"
    block_grid: Literal["rect", "square"] = "rect"
    padding: Literal["zero", "cyclic"] = "zero"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = peft_type("cdvft")
        try:
            Cdvft().spec({**self.method_options(), "partition_size": None}, Site("any", 1, 1))
        except InvalidAdapter as error:
            raise ValueError(str(error).removeprefix("adapter_config.json: ")) from None

    def method_options(self) -> Mapping[str, Any]:
        own = Cdvft.config_keys - {"site_shapes"}
        return {key: getattr(self, key) for key in sorted(own)}
