"""CDVFT against LoRA, FourierFT and the head alone: `python -m tests.study.evidence [--jobs N]`, resumable.

minilm-roberta, eight tasks, three seeds; of the three largest tasks 4,000 rows. The epoch is chosen and the figure
taken on valid, or, where there is a test set, the epoch on valid (or a tenth held out) and the figure on test. Writes
the tables of docs/training.md.
"""

import math
import random
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from cdvft.train import TrainConfig
from cdvft.train.metrics import matthews

from tests.e2e import inputs
from tests.study.runner import RUNS, Training, command, records

SEEDS = (0, 1, 2)
METHODS: dict[str, dict[str, Any]] = {
    "CDVFT": {},
    "LoRA r=8": {"method": "lora"},
    "FourierFT n=1000": {"method": "fourierft"},
    "head only": {"lr": 0.0},
}
# task: (rows of train or None for all, split for the best epoch or None for a tenth of train, split of the figure)
TASKS: dict[str, tuple[int | None, str | None, str]] = {
    "clinc_banking": (None, "valid", "test"),
    "clinc_home": (None, "valid", "test"),
    "trec": (None, "valid", "valid"),
    "sst_2": (4000, "valid", "valid"),
    "cola": (None, "valid", "valid"),
    "banking77": (4000, None, "test"),  # of 10,003
    "snips": (4000, "valid", "test"),  # of 13,084
    "rte": (None, "valid", "valid"),
}
DRAWS = 2000


def trainings(methods: Mapping[str, dict[str, Any]] = METHODS, tasks: Sequence[str] = tuple(TASKS)) -> list[Training]:
    """Seed by seed, so that a study that was stopped has whole tables of fewer seeds."""
    found = []
    for seed in SEEDS:
        for task in tasks:
            count, valid, test = TASKS[task]
            data = inputs.data(task, "train")
            if count is not None:
                data = inputs.write_rows(RUNS / "data" / f"{task}-{count}.jsonl", training_rows(task))
            for method, options in methods.items():
                chosen = inputs.data(task, valid) if valid else None
                config = TrainConfig(
                    "classify", str(inputs.model("minilm-roberta")), data, RUNS, chosen, seed=seed, **options
                )
                further = inputs.data(task, test) if test != valid else None
                about = {"method": method, "task": task, "seed": seed}
                found.append(Training((method, task, str(seed)), config, further, keep_predictions=True, about=about))
    return found


def training_rows(task: str) -> list[dict[str, Any]]:
    """banking77's come label by label: a beginning of it would lack most of them."""
    rows, count = inputs.rows(inputs.data(task, "train")), TASKS[task][0]
    if count is None or task == "sst_2":
        return rows[:count]
    return random.Random(0).sample(rows, count)


def truth(task: str) -> list[int]:
    """The figure's labels as the trainer numbers them: sorted as `cdvft.train.data.label_order` sorts."""
    from cdvft.train.data import label_order

    order = label_order([str(row["label"]) for row in training_rows(task)])
    index = {label: k for k, label in enumerate(order)}
    return [index[str(row["label"])] for row in inputs.rows(inputs.data(task, TASKS[task][2]))]


def figure(task: str, predicted: Sequence[int], true: Sequence[int]) -> float:
    """Accuracy; Matthews' correlation for cola."""
    if task == "cola":
        return matthews(predicted, true)
    return sum(p == t for p, t in zip(predicted, true, strict=True)) / len(true)


def interval(task: str, ours: list[list[int]], theirs: list[list[int]], true: list[int]) -> tuple[float, float, float]:
    """(difference, low, high): mean over seeds of ours - theirs; 95% of bootstrap draws over examples and over seeds,
    the same examples for both sides."""
    draw = random.Random(0)
    seeds = range(len(ours))

    def difference(examples: Sequence[int], chosen: Sequence[int]) -> float:
        labels = [true[k] for k in examples]
        gaps = []
        for seed in chosen:
            own = figure(task, [ours[seed][k] for k in examples], labels)
            gaps.append(own - figure(task, [theirs[seed][k] for k in examples], labels))
        return math.fsum(gaps) / len(gaps)

    everything = range(len(true))
    draws = sorted(
        difference(draw.choices(everything, k=len(true)), draw.choices(seeds, k=len(seeds))) for _ in range(DRAWS)
    )
    return difference(everything, seeds), draws[int(0.025 * DRAWS)], draws[int(0.975 * DRAWS) - 1]


def tables() -> str:
    found = {(r["method"], r["task"], r["seed"]): r for r in records("evidence")}
    header = f"| task | rows | {' | '.join(METHODS)} | CDVFT - LoRA, 95% | seeds |"
    lines = [header, "| --- " * (len(METHODS) + 4) + "|"]
    for task in TASKS:
        seeds = [seed for seed in SEEDS if all((method, task, seed) in found for method in METHODS)]
        if not seeds:
            continue
        cells = []
        for method in METHODS:
            name = "matthews" if task == "cola" else "accuracy"
            values = [found[method, task, seed]["metrics"][name] for seed in seeds]
            spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
            cells.append(f"{statistics.fmean(values):.3f}{spread}")
        sides = [[found[method, task, seed]["predictions"] for seed in seeds] for method in ("CDVFT", "LoRA r=8")]
        middle, low, high = interval(task, sides[0], sides[1], truth(task))
        name = f"{task} (Matthews)" if task == "cola" else task
        cells = [name, f"{len(training_rows(task)):,}", *cells, f"{middle:+.3f} [{low:+.3f}, {high:+.3f}]"]
        lines.append(f"| {' | '.join(cells)} | {len(seeds)} |")
    lines += ["", "| method | parameters | seconds for trec, one thread, the quickest seed |", "| --- | --- | --- |"]
    for method in METHODS:
        own = [r for (m, task, _), r in found.items() if (m, task) == (method, "trec")]
        if own:
            trained = 0 if method == "head only" else own[0]["parameters"]
            lines.append(f"| {method} | {trained:,} | {min(r['seconds'] for r in own):.0f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    command("evidence", __doc__, trainings, tables)
