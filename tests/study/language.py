"""Language modelling in a new style: `python -m tests.study.language [--jobs N]`, resumable; prints a table.

Perplexity of held-out text on stories260k and cdvft-tiny: the base, CDVFT, LoRA r=8, on q and v (one seed) and on all
linear layers (three seeds).
"""

import random
import statistics
from functools import cache
from pathlib import Path
from typing import Any

import torch
from cdvft.train import TrainConfig
from cdvft_server.demo import base_path
from cdvft_server.demo.language import language
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.e2e import inputs
from tests.e2e.test_trial_generate import asking, loud, numbered
from tests.study.runner import RUNS, Training, by, command, records

SEEDS = (0, 1, 2)
METHODS: dict[str, dict[str, Any]] = {
    "base": {"lr": 1e-30, "epochs": 1},
    "CDVFT": {},
    "LoRA r=8": {"method": "lora"},
    "CDVFT, all": {"targets": "all-linear"},
    "LoRA r=8, all": {"method": "lora", "targets": "all-linear"},
}
ONE_SEED = ("base", "CDVFT", "LoRA r=8")  # on q and v: for orientation
STYLES = {"in capitals": loud, "numbered": numbered, "asking": asking}
TRAIN, HELD_OUT = 400, 100


def texts(base: str, style: str) -> tuple[Path, Path]:
    """Texts that the base could have written, in a style that it has not seen: (train, held out)."""
    plain = _samples() if base == "stories260k" else _grammar()
    rows = [{"text": STYLES[style](text)} for text in plain]
    name = f"{base}-{style.replace(' ', '-')}"
    return (
        inputs.write_rows(RUNS / "data" / f"{name}-train.jsonl", rows[:TRAIN]),
        inputs.write_rows(RUNS / "data" / f"{name}-valid.jsonl", rows[TRAIN:]),
    )


def _grammar() -> list[str]:
    rng = random.Random(11)
    return [language().generate("story", rng) for _ in range(TRAIN + HELD_OUT)]


@cache
def _samples() -> list[str]:
    """Of stories260k itself, seeded, at temperature 0.8."""
    path = inputs.model("stories260k")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(path).eval(), AutoTokenizer.from_pretrained(path)
    torch.manual_seed(0)
    start = torch.full((100, 1), tokenizer.bos_token_id)
    options = {"do_sample": True, "temperature": 0.8, "top_k": 0, "max_new_tokens": 250, "pad_token_id": 0}
    found: list[str] = []
    while len(found) < TRAIN + HELD_OUT:
        with torch.inference_mode():
            out = model.generate(
                start, attention_mask=torch.ones_like(start), eos_token_id=tokenizer.bos_token_id, **options
            )
        found += tokenizer.batch_decode(out, skip_special_tokens=True)
    return found


def trainings() -> list[Training]:
    found = []
    bases = {"stories260k": inputs.model("stories260k"), "cdvft-tiny": base_path()}
    for seed in SEEDS:
        for base, path in bases.items():
            for style in STYLES:
                data, valid = texts(base, style)
                for method, options in METHODS.items():
                    if seed and method in ONE_SEED:
                        continue
                    config = TrainConfig("lm", str(path), data, RUNS, valid, seed=seed, **options)
                    about = {"base": base, "style": style, "method": method, "seed": seed}
                    found.append(Training((base, style, method, str(seed)), config, about=about))
    return found


def table() -> str:
    """Perplexity of held-out text; numbers in the adapter, of the first style."""
    columns = [*METHODS, "CDVFT over LoRA, all", "seeds"]
    lines = [f"| base | style | {' | '.join(columns)} |", "| --- " * (len(columns) + 2) + "|"]
    for (base, style), own in by(records("language"), "base", "style"):
        found = {method: [r["metrics"]["perplexity"] for r in rows] for (method,), rows in by(own, "method")}
        if set(found) < set(METHODS):
            continue
        means = {method: statistics.fmean(values) for method, values in found.items()}
        cells = [f"{means[method]:.3f}" for method in METHODS]
        ratio = means["CDVFT, all"] / means["LoRA r=8, all"]
        lines.append(f"| {base} | {style} | {' | '.join(cells)} | {ratio:.3f} | {len(found['CDVFT, all'])} |")
    for (base,), own in by(records("language"), "base"):
        counts = {r["method"]: r["parameters"] for r in own}
        cells = [f"{0 if method == 'base' else counts.get(method, 0):,}" for method in METHODS]
        lines.append(f"| {base} | numbers | {' | '.join(cells)} | | |")
    return "\n".join(lines)


if __name__ == "__main__":
    command("language", __doc__, trainings, table)
