"""Training one adapter on one task, by the same `prepare` and `apply` that serve it. Importing this loads no torch."""

from typing import Any

from cdvft.train.config import TrainConfig

__all__ = ["TrainConfig", "train"]


def train(config: TrainConfig) -> dict[str, Any]:
    """Train, write the adapter folder `config.out`, and report the evaluation (see `cdvft.train.run.run`)."""
    from cdvft.train.run import run

    return run(config)
