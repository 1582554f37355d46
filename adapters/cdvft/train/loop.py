"""The training loop: AdamW, linear decay after a warm-up, the best epoch kept, every minute a state to resume from."""

import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any, NoReturn

import torch
from tqdm import tqdm

from cdvft.errors import CdvftError
from cdvft.train.items import Item, shuffled_batches
from cdvft.train.objectives import Evaluation, Objective
from cdvft.train.precision import mixed_precision
from cdvft.train.resume import Saved
from cdvft.train.trainee import State, Trainee

__all__ = ["Best", "Diverged", "Record", "Schedule", "fit", "note"]

WARM_UP = 0.06  # of all steps
MAX_GRADIENT_NORM = 1.0
ABSURD = 1e4  # no vector of a training that works comes near
LOWER = "lower the learning rates (--lr, --lr-head)"
SAVE_SECONDS = 60.0


class Diverged(CdvftError):
    """No epoch's loss was finite: with these options it will not be next time either."""


@dataclass(frozen=True)
class Schedule:
    """`rates`: peak learning rates by parameter group; `patience`: epochs without a better one, 0 for all of them;
    `mixed`: train under mixed precision (evaluation never is).
    """

    epochs: int
    batch_size: int
    rates: Mapping[str, float]
    weight_decay: float
    seed: int
    patience: int = 0
    mixed: bool = False


@dataclass(frozen=True)
class Record:
    """What one epoch (from 1) came to; `losses` are its steps' training losses."""

    epoch: int
    losses: tuple[float, ...]
    evaluation_loss: float
    metrics: Mapping[str, float]

    @property
    def loss(self) -> float:
        return math.fsum(self.losses) / len(self.losses)


@dataclass(frozen=True)
class Best:
    """The epoch that was kept (from 1), its evaluation, and the whole way there."""

    epoch: int
    evaluation: Evaluation
    history: Sequence[Record]


def note(message: str) -> None:
    """A line on standard error, beside the progress bar."""
    tqdm.write(message, file=sys.stderr)


def fit(
    trainee: Trainee,
    objective: Objective,
    train: Sequence[Item],
    evaluation: Sequence[Item],
    schedule: Schedule,
    *,
    saved: Saved | None = None,
) -> Best:
    """Train in place; the trainee ends with the best epoch's tensors. `saved` keeps a state to go on from, and gives
    one back where there is one: what comes out is the same as without the interruption.

    Raises Diverged when no epoch stays finite. Where the loss stops being finite later, training ends there; this,
    and vectors far too large, are told by `note`.
    """
    trainer = _Trainer(trainee, objective, schedule, math.ceil(len(train) / schedule.batch_size))
    trainer.resume(saved)
    with tqdm(total=trainer.total, initial=trainer.step, unit="step", file=sys.stderr, disable=None) as bar:
        while not trainer.finished:
            trainer.epoch(train, bar, saved)
            with torch.no_grad():
                trainer.judge(objective.evaluate(trainee, evaluation, schedule.batch_size))
            if saved is not None:
                saved.keep(trainer.state())
    return trainer.best()


class _Trainer:
    """The loop's state: where it stands, what it saw, and what it would keep."""

    def __init__(self, trainee: Trainee, objective: Objective, schedule: Schedule, steps: int) -> None:
        self.trainee, self.objective, self.schedule, self.steps = trainee, objective, schedule, steps
        self.total = schedule.epochs * steps
        self.parameters = list(trainee.trained().values())
        groups = trainee.groups(schedule.rates, schedule.weight_decay)
        if not groups:
            raise CdvftError("every learning rate is 0: nothing would be trained; give --lr")
        self.optimizer = torch.optim.AdamW(groups)
        self.step = 0
        self.losses: list[float] = []  # of the epoch in progress
        self.history: list[Record] = []
        self.kept: State = trainee.state()
        self.best_epoch = 0
        self.ended = False
        self.best_evaluation: Evaluation | None = None

    @property
    def finished(self) -> bool:
        waited = len(self.history) - self.best_epoch
        patient = self.schedule.patience == 0 or waited < self.schedule.patience
        return self.ended or len(self.history) == self.schedule.epochs or not patient

    def epoch(self, train: Sequence[Item], bar: "tqdm[NoReturn]", saved: Saved | None) -> None:
        """The rest of the epoch in progress."""
        seed = (self.schedule.seed, len(self.history) + 1)
        batches = shuffled_batches(train, self.schedule.batch_size, seed, self.trainee.device)
        last_saved = time.monotonic()
        for batch in islice(batches, len(self.losses), None):
            for group in self.optimizer.param_groups:
                left = 1.0 if group["until"] is None else 1 - self.step / (group["until"] * self.total)
                group["lr"] = group["rate"] * _decay(self.step, self.total) * max(left, 0.0)
            with mixed_precision(self.trainee.backbone, enabled=self.schedule.mixed):
                loss = self.objective.loss(self.trainee, batch)
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(self.parameters, MAX_GRADIENT_NORM)
            self.optimizer.step()
            self.losses.append(loss.item())
            self.step += 1
            bar.set_postfix(loss=f"{self.losses[-1]:.4f}", refresh=False)
            bar.update()
            if saved is not None and time.monotonic() - last_saved >= SAVE_SECONDS:
                saved.keep(self.state())
                last_saved = time.monotonic()

    def judge(self, result: Evaluation) -> None:
        """Close the epoch: keep it if it is the best, end where nothing is finite any more."""
        record = Record(len(self.history) + 1, tuple(self.losses), result.loss, result.metrics)
        self.history.append(record)
        self.losses = []
        shown = "".join(f", {name} {value:.4f}" for name, value in result.metrics.items())
        note(
            f"epoch {record.epoch}/{self.schedule.epochs}: training loss {record.loss:.4f}, "
            f"evaluation loss {result.loss:.4f}{shown}"
        )
        better = self.best_evaluation is None or result.rank > self.best_evaluation.rank
        if math.isfinite(result.loss) and better:
            self.best_epoch, self.best_evaluation, self.kept = record.epoch, result, self.trainee.state()
        if not math.isfinite(record.loss + result.loss):
            note(f"epoch {record.epoch}: the loss is not finite any more, training ends here; {LOWER}")
            self.ended = True

    def best(self) -> Best:
        """Load the best epoch's tensors."""
        if self.best_evaluation is None:
            raise Diverged(f"the loss is not finite after any epoch; {LOWER}")
        if len(self.history) < self.schedule.epochs and not self.ended:
            note(f"no better epoch in {self.schedule.patience}, training ends early; epoch {self.best_epoch} is kept")
        largest = max(float(tensor.abs().max()) for tensor in self.kept.values())
        if largest > ABSURD:
            note(
                f"epoch {self.best_epoch}, which is kept, has values up to {largest:.2g}: useless most likely; {LOWER}"
            )
        self.trainee.load(self.kept)
        return Best(self.best_epoch, self.best_evaluation, self.history)

    def state(self) -> dict[str, Any]:
        """All of it, as tensors and plain values."""
        return {
            "step": self.step,
            "losses": self.losses,
            "history": [asdict(record) for record in self.history],
            "trained": self.trainee.state(),
            "kept": self.kept,
            "best_epoch": self.best_epoch,
            "best_evaluation": None if self.best_evaluation is None else asdict(self.best_evaluation),
            "ended": self.ended,
            "optimizer": self.optimizer.state_dict(),
        }

    def resume(self, saved: Saved | None) -> None:
        """Go on where `saved` stands, if it holds a state."""
        state = None if saved is None else saved.load()
        if state is None:
            return
        self.step, self.losses, self.ended = state["step"], state["losses"], state["ended"]
        self.history = [Record(**record) for record in state["history"]]
        self.kept, self.best_epoch = state["kept"], state["best_epoch"]
        if state["best_evaluation"] is not None:
            self.best_evaluation = Evaluation(**state["best_evaluation"])
        self.trainee.load(state["trained"])
        self.optimizer.load_state_dict(state["optimizer"])
        note(f"resumed at step {self.step} of {self.total}")


def _decay(step: int, steps: int) -> float:
    """Linear from 0 to 1 over the warm-up, then linear to 0."""
    warm_up = max(1.0, WARM_UP * steps)
    return min((step + 1) / warm_up, (steps - step) / max(1.0, steps - warm_up), 1.0)
