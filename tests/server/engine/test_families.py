"""Every family that is listed is served as transformers computes it; others, and variants, are refused by name."""

import random

import pytest
import torch
from cdvft.backbone import load_backbone
from cdvft.errors import UnsupportedBase
from cdvft.family import FAMILIES
from cdvft.heads import HeadSpec
from transformers import AutoConfig

from tests.server.engine.harness import serving
from tests.server.engine.reference import Decoder, Encoder
from tests.tiny import random_adapter, tiny_base

DECODERS = [name for name, family in FAMILIES.items() if family.kind == "decoder"]
ENCODERS = [name for name, family in FAMILIES.items() if family.kind == "encoder"]


def rows(count, longest):
    rng = random.Random(3)
    return [[rng.randrange(5, 90) for _ in range(rng.randint(1, longest))] for _ in range(count)]


@pytest.mark.parametrize("model_type", DECODERS)
def test_decoders_generate_as_transformers_does(model_type, tmp_path):
    """The proof at start passes, and mixed batches in chunks give the tokens of merged weights."""
    folder = tiny_base(tmp_path / model_type, model_type, seed=1)
    backbone, reference = load_backbone(str(folder)), Decoder(folder)
    assert backbone.info.family.model_type == model_type
    every = tuple(backbone.info.family.projections.values())
    fleet = [None, random_adapter(backbone.info, 1), random_adapter(backbone.info, 2, targets=every)]
    work = [(prompt, fleet[k % 3]) for k, prompt in enumerate(rows(12, 40))]
    with serving(backbone, max_batch_tokens=24) as served:
        for (prompt, adapter), listener in zip(work, served.submit(work, max_tokens=12), strict=True):
            listener.wait()
            reference.assert_greedy(prompt, adapter, listener.tokens, 12)
    assert len({tuple(reference.greedy([5, 6, 7], adapter, 12)) for adapter in fleet}) == 3


@pytest.mark.parametrize("model_type", ENCODERS)
def test_encoders_classify_as_transformers_does(model_type, tmp_path):
    folder = tiny_base(tmp_path / model_type, model_type, seed=2)
    backbone = load_backbone(str(folder))
    reference = Encoder(folder, pooler=backbone.pooler is not None)
    fleet = [
        random_adapter(backbone.info, 1, "classification", "abc", head=HeadSpec("standard", "first", 3)),
        random_adapter(backbone.info, 2, "classification", "abcd"),
    ]
    inputs = rows(14, 60)
    with serving(backbone, max_batch_tokens=128) as served:
        found = [served.score(row, fleet[k % 2]).logits() for k, row in enumerate(inputs)]
    for k, (row, logits) in enumerate(zip(inputs, found, strict=True)):
        (expected,) = reference.logits([row], fleet[k % 2])
        torch.testing.assert_close(torch.tensor(logits), torch.tensor(expected), rtol=1e-4, atol=1e-4)


REFUSED = [
    ("gemma2", {}, "model_type 'gemma2' is not served"),
    ("mixtral", {}, "model_type 'mixtral' is not served"),
    ("modernbert", {}, "model_type 'modernbert' is not served"),
    ("deberta-v2", {}, "model_type 'deberta-v2' is not served"),
    ("gpt2", {}, "model_type 'gpt2' is not served"),
]


@pytest.mark.parametrize(("model_type", "options", "words"), REFUSED)
def test_other_families_are_refused_by_name(model_type, options, words, tmp_path):
    AutoConfig.for_model(model_type, **options).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedBase, match=words):
        load_backbone(str(tmp_path))


@pytest.mark.parametrize(
    ("model_type", "options", "words"),
    [
        ("mistral", {"sliding_window": 32}, r"sliding_window = 32 is not served.* at least the served context of 256"),
        (
            "qwen2",
            {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 1},
            "sliding_window|layer_types",
        ),
        (
            "qwen3",
            {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 1},
            "sliding_window|layer_types",
        ),
        ("gemma", {"use_bidirectional_attention": True}, "use_bidirectional_attention = True is not served"),
    ],
)
def test_variants_that_the_packed_forward_does_not_compute_are_refused_by_key(model_type, options, words, tmp_path):
    backbone = load_backbone(str(tiny_base(tmp_path / model_type, model_type, **options)))
    with pytest.raises(UnsupportedBase, match=words), serving(backbone):
        pass


def test_a_window_that_the_context_fits_into_is_served(tmp_path):
    folder = tiny_base(tmp_path / "mistral", "mistral", sliding_window=64)
    backbone, reference = load_backbone(str(folder)), Decoder(folder)
    with serving(backbone, context_length=64) as served:
        listener = served.generate([5, 6, 7, 8] * 10, max_tokens=20)
        listener.wait()
        reference.assert_greedy([5, 6, 7, 8] * 10, None, listener.tokens, 20)
