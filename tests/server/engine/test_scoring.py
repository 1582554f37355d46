"""Encoder and decoder classification against a padded plain forward on merged weights."""

import random

import pytest
import torch
from cdvft.backbone import load_backbone
from cdvft.heads import HeadSpec, head_logits, pool
from cdvft.merge import merge

from tests.server.engine.harness import serving
from tests.tiny import random_adapter

CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def classifiers(base, head_types):
    """Different heads, label counts, methods' shapes; a regressor; several adapters in one bank."""
    fleet = []
    for i, (kind, pooling) in enumerate(head_types):
        labels = [f"l{k}" for k in range(2 + i)]
        head = HeadSpec(kind, pooling, len(labels))
        fleet.append(random_adapter(base, 10 + i, "classification", labels, head=head))
        fleet.append(random_adapter(base, 20 + i, "classification", labels, head=head, num_factors=3, partition_size=8))
    head = HeadSpec("linear", head_types[0][1], 1)
    return [*fleet, random_adapter(base, 30, "regression", head=head)]


def inputs(backbone, count, seed):
    config, rng = backbone.config, random.Random(seed)
    rows = [
        [rng.choice([t for t in range(260) if t != config.pad_token_id and t < config.vocab_size]) for _ in range(n)]
        for n in (rng.randint(1, backbone.info.max_length) for _ in range(count))
    ]
    return rows, [[rng.randrange(getattr(config, "type_vocab_size", 1)) for _ in row] for row in rows]


@pytest.mark.parametrize("budget", [2048, 128, 16])
@pytest.mark.parametrize("name", ["roberta", "bert"])
def test_mixed_rows_equal_a_padded_batch(request, encoders, name, budget):
    """Budget 16 is smaller than most inputs: such a segment has a batch for itself."""
    backbone = request.getfixturevalue(name)
    fleet = classifiers(backbone.info, [("standard", "first"), ("linear", "mean"), ("linear", "first")])
    rows, types = inputs(backbone, 40, seed=budget)
    with serving(backbone, max_batch_tokens=budget) as served:
        requests = [
            served.request(row, fleet[i % len(fleet)], type_ids=types[i] if i % 2 else None)
            for i, row in enumerate(rows)
        ]
        listeners = served.send(requests)
        for k, adapter in enumerate(fleet):
            own = range(k, len(rows), len(fleet))
            zeros = [types[i] if i % 2 else [0] * len(rows[i]) for i in own]
            expected = encoders[name].logits([rows[i] for i in own], adapter, zeros)
            torch.testing.assert_close(
                torch.tensor([listeners[i].logits() for i in own]), torch.tensor(expected), **CLOSE
            )


@pytest.mark.parametrize("budget", [2048, 13, 1])
@pytest.mark.parametrize("pooling", ["last", "mean", "first"])
def test_decoder_classification_is_pooled_across_chunks(llama, decoder, pooling, budget):
    kind = "standard" if pooling == "last" else "linear"
    adapter = random_adapter(llama.info, 1, "classification", ["a", "b", "c"], head=HeadSpec(kind, pooling, 3))
    writer = random_adapter(llama.info, 2)
    rows, _ = inputs(llama, 6, seed=4)
    with serving(llama, max_batch_tokens=budget) as served:
        listeners = [served.score(row, adapter) for row in rows]
        text = served.generate([5, 6, 7], writer, max_tokens=10)
        logits = [listener.logits() for listener in listeners]
        text.wait()
    decoder.assert_greedy([5, 6, 7], writer, text.tokens, 10)
    with merge(decoder.fp32.model, adapter), torch.no_grad():
        hidden = [decoder.fp32.model(torch.tensor([row])).last_hidden_state[0] for row in rows]
    pooled = torch.stack([pool(own, pooling) for own in hidden])
    expected = head_logits(adapter.spec.head, adapter.head, pooled)
    torch.testing.assert_close(torch.tensor(logits), expected, **CLOSE)


def test_bfloat16_scores_are_near_float32(folders, roberta):
    adapter = random_adapter(roberta.info, 1, "classification")
    rows, _ = inputs(roberta, 12, seed=2)
    logits = []
    for backbone in (roberta, load_backbone(str(folders["roberta"]), dtype="bfloat16")):
        with serving(backbone) as served:
            listeners = served.send([served.request(row, adapter) for row in rows])
            logits.append(torch.tensor([listener.logits() for listener in listeners]))
    exact, half = logits
    assert 0 < float((half - exact).norm() / exact.norm()) < 0.05


def test_a_classifier_needs_no_kv_beyond_its_prompt(llama):
    adapter = random_adapter(llama.info, 1, "classification")
    with serving(llama, kv_tokens=20) as served:
        assert len(served.score(list(range(3, 23)), adapter).logits()) == 2
