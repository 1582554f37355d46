"""Training one adapter on one task, by the same `prepare` and `apply` that serve it. Importing this loads no torch."""

from collections.abc import Iterator
from typing import Any

from cdvft.errors import CdvftError
from cdvft.train.config import TrainConfig

__all__ = ["TrainConfig", "train", "train_folder"]


def train(config: TrainConfig) -> dict[str, Any]:
    """Train, write the adapter folder `config.out`, and report the evaluation (see `cdvft.train.run.run`)."""
    from cdvft.train.run import run

    return run(config)


def train_folder(config: TrainConfig) -> Iterator[tuple[str, dict[str, Any] | CdvftError]]:
    """Train every task of the folder `config.data` on one base (see `cdvft.train.run.run_folder`)."""
    from cdvft.train.run import run_folder

    yield from run_folder(config)
