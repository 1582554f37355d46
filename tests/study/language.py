"""Language modelling in a new style: `python -m tests.study.language [--jobs N]`, resumable; prints a table.

Perplexity of held-out text on stories260k and cdvft-tiny: the base, CDVFT, LoRA r=8; three seeds.
"""

import random
import statistics
from pathlib import Path
from typing import Any

from cdvft.train import TrainConfig
from cdvft_server.demo import base_path
from cdvft_server.demo.language import language

from tests.e2e import inputs
from tests.e2e.test_trial_generate import asking, loud, numbered
from tests.study.runner import RUNS, Training, by, command, records

SEEDS = (0, 1, 2)
METHODS: dict[str, dict[str, Any]] = {"base": {"lr": 1e-30, "epochs": 1}, "CDVFT": {}, "LoRA r=8": {"method": "lora"}}
STYLES = {"in capitals": loud, "numbered": numbered, "asking": asking}
TRAIN, HELD_OUT = 400, 100


def texts(style: str) -> tuple[Path, Path]:
    """Stories of the demo's grammar in a style that neither base has seen: (train, held out)."""
    rng = random.Random(11)
    rows = [{"text": STYLES[style](language().generate("story", rng))} for _ in range(TRAIN + HELD_OUT)]
    name = style.replace(" ", "-")
    return (
        inputs.write_rows(RUNS / "data" / f"{name}-train.jsonl", rows[:TRAIN]),
        inputs.write_rows(RUNS / "data" / f"{name}-valid.jsonl", rows[TRAIN:]),
    )


def trainings() -> list[Training]:
    found = []
    bases = {"stories260k": inputs.model("stories260k"), "cdvft-tiny": base_path()}
    for seed in SEEDS:
        for style in STYLES:
            data, valid = texts(style)
            for base, path in bases.items():
                for method, options in METHODS.items():
                    config = TrainConfig("lm", str(path), data, RUNS, valid, seed=seed, **options)
                    about = {"base": base, "style": style, "method": method, "seed": seed}
                    found.append(Training((base, style, method, str(seed)), config, about=about))
    return found


def table() -> str:
    columns = [*METHODS, "CDVFT over LoRA", "seeds"]
    lines = [f"| base | style | {' | '.join(columns)} |", "| --- " * (len(columns) + 2) + "|"]
    for (base, style), own in by(records("language"), "base", "style"):
        found = {method: [r["metrics"]["perplexity"] for r in rows] for (method,), rows in by(own, "method")}
        if set(found) < set(METHODS):
            continue
        means = {method: statistics.fmean(values) for method, values in found.items()}
        cells = [f"{means[method]:.3f}" for method in METHODS]
        ratio = means["CDVFT"] / means["LoRA r=8"]
        lines.append(f"| {base} | {style} | {' | '.join(cells)} | {ratio:.3f} | {len(found['CDVFT'])} |")
    return "\n".join(lines)


if __name__ == "__main__":
    command("language", __doc__, trainings, table)
