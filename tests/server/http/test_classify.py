"""`/v1/classify` on encoders and decoders."""

from typing import Any

import pytest
import torch
from cdvft.formatting import encode_classification

from tests.server.engine.reference import Encoder
from tests.server.http.harness import Fleet, error_of
from tests.tiny import random_adapter

TEXTS = ["the cat sat", "a big red dog ran", "no", "it is a good mat and she is not bad"]


@pytest.fixture(scope="module")
def reference(encoder: Fleet) -> Encoder:
    return Encoder(encoder.base.path, pooler=False)


def logits(encoder: Fleet, reference: Encoder, name: str, rows: list[Any]) -> torch.Tensor:
    ids = []
    for row in rows:
        pair = (row, None) if isinstance(row, str) else row
        encoded = encode_classification(encoder.base.tokenizer, *pair, max_length=96, truncate=False, type_vocab_size=1)
        ids.append(encoded.ids)
    return torch.tensor(reference.logits(ids, encoder.adapters[name]))


def test_scores_are_the_merged_models(encoder: Fleet, reference: Encoder) -> None:
    answer = encoder.live.classify("topics", TEXTS)
    probabilities = logits(encoder, reference, "topics", TEXTS).softmax(-1)
    body = answer.json()
    for row, exact in zip(body["data"], probabilities, strict=True):
        scores = {entry["label"]: entry["score"] for entry in row["scores"]}
        assert torch.allclose(torch.tensor([scores[label] for label in "abcde"]), exact, atol=1e-5)
        assert [entry["score"] for entry in row["scores"]] == sorted(scores.values(), reverse=True)
        assert row["label"] == row["scores"][0]["label"] == "abcde"[int(exact.argmax())]
        assert row["score"] == row["scores"][0]["score"]
    assert [row["index"] for row in body["data"]] == [0, 1, 2, 3]
    assert body["model"] == "topics"
    assert answer.headers["x-adapter-digest"] == encoder.adapters["topics"].digest
    assert body["usage"]["completion_tokens"] == 0
    assert body["usage"]["prompt_tokens"] == body["usage"]["total_tokens"] > 4


def test_texts_and_pairs_in_one_call(encoder: Fleet) -> None:
    """Rows of one call may be of either kind: adapters for texts and for pairs share a batch."""
    mixed = encoder.live.classify(["mood", "topics", "mood"], ["the cat", ["a dog", "the cat"], ["a", "b"]])
    assert mixed.status_code == 200, mixed.text
    rows = mixed.json()["data"]
    for row, model, text in zip(
        rows, ("mood", "topics", "mood"), ("the cat", ["a dog", "the cat"], ["a", "b"]), strict=True
    ):
        alone = encoder.live.classify(model, [text]).json()["data"][0]
        assert (row["label"], row["score"]) == (alone["label"], pytest.approx(alone["score"], abs=1e-5))


def test_pairs(encoder: Fleet, reference: Encoder) -> None:
    pairs = [["the cat", "a dog"], ["a dog", "the cat"]]
    raw = encoder.live.classify("mood", pairs, raw_scores=True).json()["data"]
    exact = logits(encoder, reference, "mood", pairs)
    for row, own in zip(raw, exact, strict=True):
        scores = {entry["label"]: entry["score"] for entry in row["scores"]}
        assert torch.allclose(torch.tensor([scores["no"], scores["yes"]]), own, atol=1e-4)


def test_a_regression_has_a_score_and_no_label(encoder: Fleet, reference: Encoder) -> None:
    data = encoder.live.classify("stars", TEXTS).json()["data"]
    assert [set(row) for row in data] == [{"index", "score"}] * 4
    exact = logits(encoder, reference, "stars", TEXTS)[:, 0]
    assert torch.allclose(torch.tensor([row["score"] for row in data]), exact, atol=1e-4)


def test_every_row_its_own_adapter(encoder: Fleet) -> None:
    """The answers are those that each adapter gives alone: other label counts, other tasks, one batch."""
    models = ["topics", "mood", "stars", "topics@1"]
    answer = encoder.live.classify(models, TEXTS)
    body = answer.json()
    assert body["model"] is None
    assert not [name for name in answer.headers if name.startswith("x-adapter")]
    for model, text, row in zip(models, TEXTS, body["data"], strict=True):
        alone = encoder.live.classify(model, text).json()["data"][0]
        assert row["adapter"] == model.split("@")[0]
        assert row["digest"] == encoder.adapters[row["adapter"]].digest
        assert row["mode"] == "fft"
        assert row["score"] == pytest.approx(alone["score"], abs=1e-5)
        assert row.get("label") == alone.get("label")


def test_top_k(encoder: Fleet) -> None:
    counts = [len(encoder.live.classify("topics", top_k=k).json()["data"][0]["scores"]) for k in (1, 3, 99)]
    assert counts == [1, 3, 5]


def test_a_long_input_is_refused_or_cut(encoder: Fleet) -> None:
    encoder.add("brief", random_adapter(encoder.base.info, 9, "classification", max_length=8))
    refused = encoder.live.classify("brief", ["no", "the cat sat on the mat"])
    error = error_of(refused)
    assert (refused.status_code, error["code"], error["param"]) == (400, "invalid_request", "input")
    assert "input 1" in error["message"]
    assert "8" in error["message"]
    cut = encoder.live.classify("brief", "the cat sat on the mat", truncate=True).json()
    assert cut["usage"]["prompt_tokens"] == 8


def test_a_decoder_classifies_too(decoder: Fleet) -> None:
    answer = decoder.live.classify(["judge", "grader"], ["the cat", "a dog"])
    assert [set(row) for row in answer.json()["data"]] == [
        {"index", "label", "score", "scores", "adapter", "digest", "mode"},
        {"index", "score", "adapter", "digest", "mode"},
    ]


def test_the_most_rows(encoder: Fleet) -> None:
    answer = encoder.live.classify("mood", ["no"] * 1024)
    assert len(answer.json()["data"]) == 1024
    assert len({row["score"] for row in answer.json()["data"]}) <= 2
