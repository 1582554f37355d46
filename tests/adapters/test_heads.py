"""Heads against transformers' own sequence classifiers; pooling by hand."""

import pytest
import torch
from cdvft.errors import UnsupportedBase
from cdvft.family import FAMILIES
from cdvft.heads import HeadSpec, head_logits, head_shapes, init_head, pool
from transformers import BertForSequenceClassification, LlamaForSequenceClassification, RobertaForSequenceClassification

WHOLE = {
    "llama": LlamaForSequenceClassification,
    "roberta": RobertaForSequenceClassification,
    "bert": BertForSequenceClassification,
}


@pytest.mark.parametrize("outputs", [1, 2, 5])
@pytest.mark.parametrize("model_type", WHOLE)
def test_the_standard_head_is_the_architectures_own(model_type: str, outputs: int, request) -> None:
    backbone = request.getfixturevalue(model_type)
    family = backbone.info.family
    head = HeadSpec("standard", family.standard_pooling, outputs)
    whole = WHOLE[model_type].from_pretrained(backbone.path, num_labels=outputs).eval()
    saved = whole.state_dict()
    tensors = {name: torch.randn(shape) for name, shape in head_shapes(head, family, backbone.info.hidden).items()}
    assert {n for n in saved if n.startswith(("classifier.", "score."))} == tensors.keys()
    whole.load_state_dict(tensors, strict=False)
    ids = torch.tensor([[3, 20, 60, 33, 9]])
    with torch.no_grad():
        hidden = backbone.model(input_ids=ids).last_hidden_state[0]
        logits = head_logits(head, tensors, pool(hidden, head.pooling)[None], backbone.pooler)
        torch.testing.assert_close(logits, whole(input_ids=ids).logits)


def test_the_linear_head_leaves_the_pooler_alone(bert) -> None:
    head = HeadSpec("linear", "mean", 3)
    tensors = {"classifier.weight": torch.randn(3, 32), "classifier.bias": torch.randn(3)}
    pooled = torch.randn(4, 32)
    expected = pooled @ tensors["classifier.weight"].T + tensors["classifier.bias"]
    torch.testing.assert_close(head_logits(head, tensors, pooled, bert.pooler), expected)


def test_berts_own_head_without_a_pooler_is_an_error_not_a_linear_head() -> None:
    head = HeadSpec("standard", "first", 2)
    tensors = {"classifier.weight": torch.randn(2, 32), "classifier.bias": torch.randn(2)}
    with pytest.raises(UnsupportedBase, match="needs the base's pooler"):
        head_logits(head, tensors, torch.randn(1, 32), None)


@pytest.mark.parametrize("kind", ["linear", "standard"])
@pytest.mark.parametrize("model_type", ["llama", "roberta", "bert", "distilbert"])
def test_heads_side_by_side_equal_each_row_alone(model_type: str, kind: str, request) -> None:
    family = FAMILIES[model_type]
    pooler = request.getfixturevalue("bert").pooler if model_type == "bert" else None
    head = HeadSpec(kind, "first", 3)
    heads = [{n: torch.randn(s) for n, s in head_shapes(head, family, 32).items()} for _ in range(5)]
    pooled = torch.randn(5, 32)
    together = head_logits(head, {n: torch.stack([h[n] for h in heads]) for n in heads[0]}, pooled, pooler)
    alone = [head_logits(head, own, row[None], pooler)[0] for own, row in zip(heads, pooled, strict=True)]
    torch.testing.assert_close(together, torch.stack(alone), rtol=1e-5, atol=1e-5)


def test_pooling_is_in_fp32() -> None:
    hidden = torch.randn(7, 5, dtype=torch.bfloat16)
    torch.testing.assert_close(pool(hidden, "mean"), hidden.float().sum(0) / 7)
    assert torch.equal(pool(hidden, "first"), hidden[0].float())
    assert torch.equal(pool(hidden, "last"), hidden[6].float())


def test_fresh_heads_are_seeded_and_small(llama, roberta, bert) -> None:
    for backbone in (llama, roberta, bert):
        for kind in ("linear", "standard"):
            head = HeadSpec(kind, "first", 4)
            one, two = (init_head(head, backbone.info.family, 32, torch.Generator().manual_seed(5)) for _ in range(2))
            assert {n: tuple(t.shape) for n, t in one.items()} == head_shapes(head, backbone.info.family, 32)
            assert all(torch.equal(one[name], two[name]) for name in one)
            for name, tensor in one.items():
                is_weight = name.endswith("weight")
                assert float(tensor.abs().max()) < 0.15 if is_weight else torch.count_nonzero(tensor) == 0
