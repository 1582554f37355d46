"""What a training run is told; the command line's options have the same names and defaults."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cdvft.errors import CdvftError

__all__ = ["LONGEST_DEFAULT", "TrainConfig"]

LONGEST_DEFAULT = 512  # tokens: --max-length where the base takes more


@dataclass(frozen=True)
class TrainConfig:
    """None means: chosen by task and base; `lr` stands for `lr_circulant` and `lr_diagonal` where they are None.

    `targets` are short projection names (q, v), module names or their ends, separated by commas, or all-linear.
    `data` may be a folder of tasks (see `train_folder`). `patience`: stop after so many epochs without a better one; 0:
    never. `mixed_precision` auto: bfloat16 where the processor multiplies it fast and the base is wide enough to gain.
    `template` is a file with a chat template for `messages`, which becomes part of the adapter.
    """

    task: Literal["classify", "lm"]
    base: str
    data: Path
    out: Path
    eval: Path | None = None
    method: str = "cdvft"
    targets: str = "q,v"
    partition_size: int | None = None
    num_factors: int | None = None
    alpha: float | None = None
    rank: int | None = None
    n_frequency: int | None = None
    head: Literal["linear", "standard"] = "linear"
    max_length: int | None = None
    epochs: int = 3
    batch_size: int | None = None
    lr: float | None = None
    lr_circulant: float | None = None
    lr_diagonal: float | None = None
    lr_head: float | None = None
    weight_decay: float = 0.0
    seed: int = 0
    patience: int = 0
    mixed_precision: Literal["auto", "none", "bfloat16"] = "auto"
    resume: bool = False
    dtype: str = "auto"
    device: str = "auto"
    template: Path | None = None

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "max_length", "rank", "n_frequency"):
            self._check(name, lambda value: isinstance(value, int) and value >= 1, "at least 1")
        for name in ("lr", "lr_circulant", "lr_diagonal", "lr_head", "weight_decay"):
            self._check(name, lambda value: math.isfinite(value) and value >= 0, "a number from 0 up")
        self._check("patience", lambda value: isinstance(value, int) and value >= 0, "at least 0")
        self._check("seed", lambda value: 0 <= value < 2**63, "from 0 to 2^63 - 1")
        if self.task == "classify" and self.template is not None:
            raise CdvftError("--template is for lm: classification formats no chat")

    def _check(self, name: str, fits: Callable[[Any], bool], right: str) -> None:
        value = getattr(self, name)
        if value is not None and not fits(value):
            raise CdvftError(f"--{name.replace('_', '-')} must be {right}, it is {value!r}")
