"""Write the training data of the demo adapters as JSON lines: DIR/NAME/train.jsonl and DIR/NAME/valid.jsonl.

    python server/demo/make_data.py --out DIR [--seed N]

Writers have rows {"text"}, for `cdvft train lm`; classifiers {"text", "label"}, for `cdvft train classify`.
No text stands twice in an adapter's data, so what is in valid.jsonl is unseen in training.
The last line of standard output is JSON: the number of rows per file.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterable, Iterator
from pathlib import Path

from cdvft_server.demo.language import MOODS, TOPICS, WRITERS, language

Row = dict[str, str]

CLASSIFIERS = ("mood", "topic")
TEXTS = (1_200, 150)
SENTENCES = (1_800, 360)
"""Rows for training and for validation: of a writer, of a classifier."""


def writer_rows(name: str, rng: random.Random) -> Iterator[Row]:
    """Texts as the writer writes them, without end."""
    writer = WRITERS[name]
    narrowed = language().restricted(writer.lists)
    while True:
        yield {"text": narrowed.generate(writer.rule, rng)}


def classifier_rows(name: str, rng: random.Random) -> Iterator[Row]:
    """Sentences with their label, without end, every topic and mood in turn."""
    while True:
        for topic in TOPICS:
            for mood in MOODS:
                text = language().generate(f"{topic}_{mood}", rng)
                yield {"text": text, "label": {"topic": topic, "mood": mood}[name]}


def distinct(rows: Iterable[Row]) -> Iterator[Row]:
    seen: set[str] = set()
    for row in rows:
        if row["text"] not in seen:
            seen.add(row["text"])
            yield row


def write(path: Path, rows: list[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def make(out: Path, seed: int) -> dict[str, int]:
    """Write every adapter's two files below `out`; returns the rows in each."""
    counts = {}
    for name in (*WRITERS, *CLASSIFIERS):
        rng = random.Random(f"{name} {seed}")
        train, valid = TEXTS if name in WRITERS else SENTENCES
        unique = distinct(writer_rows(name, rng) if name in WRITERS else classifier_rows(name, rng))
        rows = [next(unique) for _ in range(train + valid)]
        rng.shuffle(rows)
        for part, chosen in (("train", rows[:train]), ("valid", rows[train:])):
            write(out / name / f"{part}.jsonl", chosen)
            counts[f"{name}/{part}"] = len(chosen)
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the demo adapters' training data.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    print(json.dumps(make(options.out, options.seed)))


if __name__ == "__main__":
    main()
