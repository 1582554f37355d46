"""The sweep behind `cdvft train`'s defaults: `python -m tests.study.sweep [--jobs N]`, resumable; prints the table.

Classification on minilm-roberta (four tasks, up to 1,500 rows each), language modelling on stories260k (two tasks).
"""

import random
import statistics
from pathlib import Path
from typing import Any

from cdvft.train import TrainConfig

from tests.e2e import inputs
from tests.e2e.test_trial_generate import loud, own_stories
from tests.study.runner import RUNS, Training, by, command, records

ROWS, HELD_OUT = 1500, 1000
CLASSIFY = {"trec": "valid", "sst_2": "valid", "clinc_banking": "valid", "banking77": "test"}
START: dict[str, Any] = {"lr": 1e-2}  # the rates that what is not about rates was compared at
# name: (options, patch)
RECIPES: dict[str, tuple[dict[str, Any], str | None]] = {
    "1e-2 / 1e-2": (START, None),
    "3e-3 / 3e-3": ({"lr": 3e-3}, None),
    "3e-2 / 3e-2": ({"lr": 3e-2}, None),
    "3e-3 / 3e-2": ({"lr_circulant": 3e-3, "lr_diagonal": 3e-2}, None),
    "3e-2 / 1e-2": ({"lr_circulant": 3e-2, "lr_diagonal": 1e-2}, None),
    "zero circulant, 1e-3 / 1e-3": ({"lr": 1e-3}, "zero_circulant"),
    "LoRA r=8, 2e-3": ({"method": "lora", "lr": 2e-3}, None),
    "LoRA r=8, 5e-3": ({"method": "lora", "lr": 5e-3}, None),
    "alpha 4": ({**START, "alpha": 4.0}, None),
    "weight decay 0.01": ({**START, "weight_decay": 0.01}, None),
    "head rate 1e-2": ({**START, "lr_head": 1e-2}, None),
    "standard head": ({**START, "head": "standard"}, None),
    "cosine": (START, "cosine"),
    "FourierFT n=1000, 5e-2": ({"method": "fourierft", "lr": 5e-2}, None),
    "1e-1 / 3e-2": ({"lr_circulant": 1e-1, "lr_diagonal": 3e-2}, None),
    "1e-1 / 1e-1": ({"lr": 1e-1}, None),
    "LoRA r=8, 1e-2": ({"method": "lora", "lr": 1e-2}, None),
    **{
        f"{method}, {rate:g}": ({"method": method, "lr": rate}, None)
        for method, rates in {
            "sdctft": (3e-3, 1e-2, 3e-2),
            "vera": (6e-3, 2e-2, 6e-2),
            "lamda": (6e-3, 2e-2, 6e-2),
            "c3a": (3e-2, 1e-1, 3e-1),
            "waveft": (2e-4, 5e-4, 2e-3),
        }.items()
        for rate in rates
    },
    "no mixed precision": ({**START, "mixed_precision": "none"}, None),
}
LM_ONLY = ("1e-1 / 3e-2", "1e-1 / 1e-1", "LoRA r=8, 1e-2")
OTHERS = ("sdctft", "vera", "lamda", "c3a", "waveft")  # trec and sst_2 alone
NOT_LM = (*OTHERS, "head rate", "standard head", "no mixed", "FourierFT", "weight decay", "cosine")


def trainings() -> list[Training]:
    found = []
    for recipe, (options, patch) in RECIPES.items():
        tasks = [] if recipe in LM_ONLY else list(CLASSIFY)[: 2 if recipe.startswith(OTHERS) else None]
        for task in tasks:
            data, held_out = _some(task, "train", ROWS), _some(task, CLASSIFY[task], HELD_OUT)
            config = TrainConfig("classify", str(inputs.model("minilm-roberta")), data, RUNS, held_out, **options)
            found.append(Training((recipe, task), config, patch=patch, about={"recipe": recipe, "task": task}))
        if recipe.startswith(NOT_LM):
            continue
        for task, data, length in _texts():
            config = TrainConfig(
                "lm", str(inputs.model("stories260k")), data, RUNS, epochs=2, max_length=length, **options
            )
            found.append(Training((recipe, task), config, patch=patch, about={"recipe": recipe, "task": task}))
    return found


def _some(task: str, split: str, count: int) -> Path:
    """Rows drawn by a fixed seed: files may be sorted by label."""
    rows = inputs.rows(inputs.data(task, split))
    drawn = random.Random(0).sample(rows, min(count, len(rows)))
    return inputs.write_rows(RUNS / "data" / f"{task}-{split}-{count}.jsonl", drawn)


def _texts() -> list[tuple[str, Path, int]]:
    gsm8k = inputs.write_rows(RUNS / "data" / "gsm8k-300.jsonl", inputs.rows(inputs.data("gsm8k", "train"))[:300])
    stories = [{"text": loud(story)} for story in own_stories(300)]
    return [("gsm8k", gsm8k, 384), ("loud", inputs.write_rows(RUNS / "data" / "loud.jsonl", stories), 512)]


def table() -> str:
    """Markdown: accuracy for classifiers, perplexity for language models, mean of the four."""
    columns = [*CLASSIFY, "mean", "gsm8k", "loud"]
    lines = [f"| recipe | {' | '.join(columns)} |", "| --- " * (len(columns) + 1) + "|"]
    for (recipe,), found in by(records("sweep"), "recipe"):
        cells = {record["task"]: _figure(record) for record in found}
        if CLASSIFY.keys() <= cells.keys():
            cells["mean"] = statistics.fmean(cells[task] for task in CLASSIFY)
        shown = [f"{cells[name]:.4g}" if name in cells else "" for name in columns]
        lines.append(f"| {recipe} | {' | '.join(shown)} |")
    return "\n".join(lines)


def _figure(record: dict[str, Any]) -> float:
    metrics: dict[str, float] = record["metrics"]
    return metrics["perplexity"] if "perplexity" in metrics else metrics["accuracy"]


if __name__ == "__main__":
    command("sweep", __doc__, trainings, table)
