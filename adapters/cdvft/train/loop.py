"""The training loop: AdamW, linear decay after a warm-up, the best epoch kept."""

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

import torch
from tqdm import tqdm

from cdvft.errors import CdvftError
from cdvft.train.items import Batch, Item, shuffled_batches
from cdvft.train.objectives import Evaluation, Objective
from cdvft.train.trainee import Trainee

__all__ = ["Best", "Schedule", "fit", "note"]

WARM_UP = 0.06  # of all steps
MAX_GRADIENT_NORM = 1.0
ABSURD = 1e4  # no vector of a training that works comes near
LOWER = "lower the learning rates (--lr, --lr-head)"


@dataclass(frozen=True)
class Schedule:
    """`rates`: peak learning rates by parameter group (circulant, diagonal, head)."""

    epochs: int
    batch_size: int
    rates: Mapping[str, float]
    weight_decay: float
    seed: int


@dataclass(frozen=True)
class Best:
    """The epoch that was kept (from 1) and its evaluation."""

    epoch: int
    evaluation: Evaluation


def note(message: str) -> None:
    """A line on standard error, beside the progress bar."""
    tqdm.write(message, file=sys.stderr)


def fit(
    trainee: Trainee, objective: Objective, train: Sequence[Item], evaluation: Sequence[Item], schedule: Schedule
) -> Best:
    """Train in place; the trainee ends with the best epoch's tensors. Raises CdvftError when no epoch stays finite.

    Where the loss stops being finite later, training ends there; this, and vectors far too large, are told by `note`.
    """
    steps = schedule.epochs * math.ceil(len(train) / schedule.batch_size)
    best, kept = None, trainee.state()
    with tqdm(total=steps, unit="step", file=sys.stderr, disable=None, dynamic_ncols=True) as bar:
        trainer = _Trainer(trainee, objective, schedule, bar)
        for epoch in range(1, schedule.epochs + 1):
            loss = trainer.epoch(shuffled_batches(train, schedule.batch_size, (schedule.seed, epoch), trainee.device))
            with torch.no_grad():
                result = objective.evaluate(trainee, evaluation, schedule.batch_size)
            shown = "".join(f", {name} {value:.4f}" for name, value in result.metrics.items())
            note(f"epoch {epoch}/{schedule.epochs}: training loss {loss:.4f}, evaluation loss {result.loss:.4f}{shown}")
            if math.isfinite(result.loss) and (best is None or result.rank > best.evaluation.rank):
                best, kept = Best(epoch, result), trainee.state()
            if not math.isfinite(loss + result.loss):
                note(f"epoch {epoch}: the loss is not finite any more, training ends here; {LOWER}")
                break
    if best is None:
        raise CdvftError(f"the loss is not finite after any epoch; {LOWER}")
    largest = max(float(tensor.abs().max()) for tensor in kept.values())
    if largest > ABSURD:
        note(f"epoch {best.epoch}, which is kept, has values up to {largest:.2g}: useless most likely; {LOWER}")
    trainee.load(kept)
    return best


class _Trainer:
    """The optimizer's side of the loop; `bar.total` is the number of steps the schedule spans."""

    def __init__(self, trainee: Trainee, objective: Objective, schedule: Schedule, bar: "tqdm[NoReturn]") -> None:
        self.trainee, self.objective, self.bar, self.step = trainee, objective, bar, 0
        self.parameters = list(trainee.trained().values())
        self.optimizer = torch.optim.AdamW(trainee.groups(schedule.rates, schedule.weight_decay))

    def epoch(self, batches: Iterable[Batch]) -> float:
        """One pass; returns the mean of the batches' losses."""
        losses = []
        for batch in batches:
            for group in self.optimizer.param_groups:
                group["lr"] = group["rate"] * _decay(self.step, self.bar.total)
            loss = self.objective.loss(self.trainee, batch)
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(self.parameters, MAX_GRADIENT_NORM)
            self.optimizer.step()
            losses.append(loss.item())
            self.step += 1
            self.bar.set_postfix(loss=f"{losses[-1]:.4f}", refresh=False)
            self.bar.update()
        return math.fsum(losses) / len(losses)


def _decay(step: int, steps: int) -> float:
    """Linear from 0 to 1 over the warm-up, then linear to 0."""
    warm_up = max(1.0, WARM_UP * steps)
    return min((step + 1) / warm_up, (steps - step) / max(1.0, steps - warm_up), 1.0)
