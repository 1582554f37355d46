"""What is learnt and how it is measured, one class per task: a loss for a batch, metrics over the evaluation."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from cdvft.train.items import Batch, Item, ordered_batches
from cdvft.train.metrics import accuracy, matthews, pearson
from cdvft.train.trainee import Trainee

__all__ = ["Classification", "Evaluation", "LanguageModel", "Objective", "Regression"]


@dataclass(frozen=True)
class Evaluation:
    """`metrics` by their names in the report; `rank` is compared between epochs, larger is better.

    `outputs [N, outputs]`: what the head gave for each item, in the items' order; None for lm.
    """

    loss: float
    metrics: dict[str, float]
    rank: tuple[float, ...]
    outputs: Tensor | None = None


class Objective(Protocol):
    def loss(self, trainee: Trainee, batch: Batch) -> Tensor: ...

    def evaluate(self, trainee: Trainee, items: Sequence[Item], batch_size: int) -> Evaluation: ...


@dataclass(frozen=True)
class Classification:
    """Cross entropy; the best epoch has the highest Matthews correlation (by accuracy it could be one that knows only
    the most frequent label), then the highest accuracy, then the lowest loss."""

    def loss(self, trainee: Trainee, batch: Batch) -> Tensor:
        return functional.cross_entropy(trainee.outputs(batch), _labels(batch))

    def evaluate(self, trainee: Trainee, items: Sequence[Item], batch_size: int) -> Evaluation:
        logits = _all_outputs(trainee, items, batch_size)
        true = [int(item.target) for item in items]
        predicted = logits.argmax(-1).tolist()
        loss = functional.cross_entropy(logits, torch.tensor(true)).item()
        metrics = {"accuracy": accuracy(predicted, true), "matthews": matthews(predicted, true)}
        return Evaluation(loss, metrics, (metrics["matthews"], metrics["accuracy"], -loss), logits)


@dataclass(frozen=True)
class Regression:
    """Squared error in units of the training scores' `spread`; the best epoch has the lowest."""

    spread: float

    def loss(self, trainee: Trainee, batch: Batch) -> Tensor:
        scores = torch.tensor(batch.targets, device=batch.ids.device)
        return functional.mse_loss(trainee.outputs(batch)[:, 0] / self.spread, scores / self.spread)

    def evaluate(self, trainee: Trainee, items: Sequence[Item], batch_size: int) -> Evaluation:
        scores = _all_outputs(trainee, items, batch_size)
        predicted, true = scores[:, 0].tolist(), [item.target for item in items]
        squares = math.fsum((p - t) ** 2 for p, t in zip(predicted, true, strict=True))
        loss = squares / len(true) / self.spread**2
        return Evaluation(loss, {"pearson": pearson(predicted, true)}, (-loss,), scores)


@dataclass(frozen=True)
class LanguageModel:
    """Cross entropy per learnt token; perplexity is its exponential over all of the evaluation's learnt tokens."""

    def loss(self, trainee: Trainee, batch: Batch) -> Tensor:
        total, count = trainee.next_token_loss(batch)
        return total / count

    def evaluate(self, trainee: Trainee, items: Sequence[Item], batch_size: int) -> Evaluation:
        total, tokens = 0.0, 0
        for batch in ordered_batches(items, batch_size, trainee.device):
            loss, count = trainee.next_token_loss(batch)
            total += loss.item()
            tokens += count
        mean = total / tokens
        return Evaluation(mean, {"perplexity": math.exp(min(mean, 700.0))}, (-mean,))


def _all_outputs(trainee: Trainee, items: Sequence[Item], batch_size: int) -> Tensor:
    """The head's outputs `[N, outputs]` on the CPU, in the items' order; inputs of similar lengths share a batch."""
    order = sorted(range(len(items)), key=lambda k: -len(items[k].ids))
    batches = ordered_batches(items, batch_size, trainee.device)
    rows = torch.cat([trainee.outputs(batch).cpu() for batch in batches])
    return torch.empty_like(rows).index_copy_(0, torch.tensor(order), rows)


def _labels(batch: Batch) -> Tensor:
    return torch.tensor([int(target) for target in batch.targets], device=batch.ids.device)
