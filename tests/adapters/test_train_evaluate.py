"""A finished adapter evaluates, from its folder, exactly as training reported it."""

import json
import random
from pathlib import Path

import pytest
from cdvft.errors import CdvftError
from cdvft.train import TrainConfig, train
from cdvft.train.evaluate import evaluate

from tests.tiny import tiny_llama, tiny_roberta

WORDS = {"red": "warm", "blue": "cold", "cat": "animal"}


def write(path: Path, count: int, seed: int, field: str) -> Path:
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        word = rng.choice(sorted(WORDS))
        target = WORDS[word] if field == "label" else len(word) + rng.random()
        rows.append({"text": " ".join([word] * rng.randint(1, 6)), field: target})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("make", [tiny_roberta, tiny_llama])
@pytest.mark.parametrize(("field", "metric"), [("label", "accuracy"), ("score", "pearson")])
def test_evaluation_from_the_folder_is_what_training_reported(make, field: str, metric: str, tmp_path: Path) -> None:
    base = str(make(tmp_path / "base"))
    data, valid = write(tmp_path / "train.jsonl", 40, 1, field), write(tmp_path / "valid.jsonl", 17, 2, field)
    out = tmp_path / "out"
    trained = train(TrainConfig("classify", base, data, out, eval=valid, epochs=1, batch_size=8))
    report = evaluate(out, base, valid, batch_size=5)
    assert len(report.predictions) == 17
    assert report.metrics[metric] == pytest.approx(trained[metric], abs=1e-4)
    if field == "label":
        rows = [json.loads(line) for line in valid.read_text().splitlines()]
        right = sum(p == row["label"] for p, row in zip(report.predictions, rows, strict=True))
        assert right / 17 == pytest.approx(report.metrics["accuracy"])


def test_a_language_model_adapter_is_refused(tmp_path: Path) -> None:
    base = str(tiny_llama(tmp_path / "base"))
    data = tmp_path / "train.jsonl"
    data.write_text('{"text": "the cat sat"}\n' * 4)
    train(TrainConfig("lm", base, data, tmp_path / "out", epochs=1))
    with pytest.raises(CdvftError, match="language-model"):
        evaluate(tmp_path / "out", base, data)
