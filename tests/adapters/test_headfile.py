"""Heads as uploads carry them: ours with every key, plain PEFT's with none."""

from dataclasses import replace

import pytest
import torch
from cdvft.checkpoint import adapter_files, read_adapter
from cdvft.errors import InvalidAdapter, TooLarge
from cdvft.heads import HeadSpec

from tests.adapters.editing import REMOVED, with_config, with_tensors
from tests.tiny import random_adapter

HEAD = "base_model.model."
PLAIN_PEFT = dict.fromkeys(("labels", "problem_type", "head", "max_length", "base_digest"), REMOVED)


def standard(base, **options):
    head = HeadSpec("standard", base.family.standard_pooling, 2)
    return random_adapter(base, 3, "classification", head=head, **options)


def refused(files, base, *parts: str, labels=None, error=InvalidAdapter, **options) -> None:
    with pytest.raises(error) as caught:
        read_adapter(files, base, labels, **options)
    for part in parts:
        assert part in str(caught.value)


@pytest.fixture
def classifier(roberta):
    return adapter_files(random_adapter(roberta.info, 3, "classification", ["x", "y", "z"]), roberta.info)


@pytest.fixture
def regressor(roberta):
    return adapter_files(random_adapter(roberta.info, 3, "regression"), roberta.info)


def test_plain_peft_heads_are_read_from_the_tensor_names(llama, roberta, bert) -> None:
    """Without our keys: the architecture's own head where the tensors are its, else linear."""
    saved = {"llama": "score", "roberta": "classifier", "bert": "classifier"}
    for backbone in (llama, roberta, bert):
        base = backbone.info
        files = adapter_files(standard(base), base)
        plain = with_config(files, **PLAIN_PEFT, modules_to_save=["classifier", "score"])
        adapter = read_adapter(plain, base)
        assert adapter.spec.head == HeadSpec("standard", base.family.standard_pooling, 2)
        assert adapter.spec.labels == ("LABEL_0", "LABEL_1")
        assert adapter.spec.task == "classification"
        assert {name.split(".")[0] for name in adapter.head} == {saved[base.family.model_type]}
        assert not adapter.base_verified
    for backbone in (llama, roberta):  # classifier.{weight,bias} is not their own head
        files = adapter_files(random_adapter(backbone.info, 3, "classification"), backbone.info)
        adapter = read_adapter(with_config(files, **PLAIN_PEFT), backbone.info)
        assert adapter.spec.head == HeadSpec("linear", backbone.info.family.linear_pooling, 2)


def test_bert_without_the_head_key_means_its_own_pooler_and_with_it_a_mean(bert) -> None:
    files = adapter_files(random_adapter(bert.info, 3, "classification"), bert.info)
    assert read_adapter(files, bert.info).spec.head == HeadSpec("linear", "mean", 2)
    plain = read_adapter(with_config(files, **PLAIN_PEFT), bert.info)
    assert plain.spec.head == HeadSpec("standard", "first", 2)


def test_berts_own_head_needs_the_pooler(bert) -> None:
    without = replace(bert.info, has_pooler=False)
    files = adapter_files(standard(bert.info), bert.info)
    refused(files, without, "needs the base's pooler, which tiny-bert does not have")
    linear = adapter_files(random_adapter(bert.info, 3, "classification"), bert.info)
    assert read_adapter(linear, without).spec.head == HeadSpec("linear", "mean", 2)


@pytest.mark.parametrize("pooling", ["mean", "first", "last"])
def test_a_linear_head_pools_as_it_says(roberta, llama, pooling) -> None:
    for backbone in (roberta, llama):
        head = HeadSpec("linear", pooling, 2)
        adapter = random_adapter(backbone.info, 3, "classification", head=head)
        assert read_adapter(adapter_files(adapter, backbone.info), backbone.info).spec.head == head


def test_one_row_is_a_regression(roberta, regressor) -> None:
    for changes in ({}, PLAIN_PEFT, {"problem_type": None, "labels": []}):
        adapter = read_adapter(with_config(regressor, **changes), roberta.info)
        assert (adapter.spec.task, adapter.spec.labels) == ("regression", None)
    refused(regressor, roberta.info, "regression has no labels", labels=["only"])
    refused(with_config(regressor, labels=["only"]), roberta.info, "regression has no labels")
    single = with_config(regressor, problem_type="single_label_classification")
    refused(single, roberta.info, "the head has 1 outputs; regression has exactly one")


def test_labels_come_from_the_config_else_the_form_else_are_numbered(roberta, classifier) -> None:
    base = roberta.info
    assert read_adapter(classifier, base).spec.labels == ("x", "y", "z")
    assert read_adapter(classifier, base, ["x", "y", "z"]).spec.labels == ("x", "y", "z")
    refused(classifier, base, "labels of the form differ", labels=["z", "y", "x"])
    without = with_config(classifier, labels=REMOVED)
    assert read_adapter(without, base, ["c", "b", "a"]).spec.labels == ("c", "b", "a")
    assert read_adapter(without, base).spec.labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    assert read_adapter(without, base).digest != read_adapter(classifier, base).digest
    family = "👩‍👩‍👧 می‌روم \u3000."
    assert read_adapter(without, base, [family, "b", "c"]).spec.labels == (family, "b", "c")


@pytest.mark.parametrize(
    ("labels", "part"),
    [
        (["a", "b"], "are 2, the head has 3 outputs"),
        (["a", "b", "a"], "have 'a' twice"),
        (["a", "", "c"], "have '': empty"),
        (["a", " ", "c"], "have ' ': empty"),
        (["a", "b\n", "c"], "control characters"),
        (["a", "b\0", "c"], "control characters"),
        (["a", 2, "c"], "must be a list of strings"),
        ({"0": "a"}, "must be a list of strings"),
        ("abc", "must be a list of strings"),
    ],
)
def test_bad_labels_are_refused(roberta, classifier, labels, part) -> None:
    refused(with_config(classifier, labels=labels), roberta.info, "adapter_config.json: labels", part)
    if isinstance(labels, list):
        without = with_config(classifier, labels=REMOVED)
        refused(without, roberta.info, "labels of the form", part, labels=labels)
        surrogate = ["a", "\ud800", "c"]
        refused(without, roberta.info, "labels of the form", labels=surrogate)


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"problem_type": "multi_label_classification"}, "multi-label classification is not supported"),
        ({"problem_type": "ranking"}, "problem_type must be single_label_classification or regression"),
        ({"problem_type": 3}, "problem_type must be"),
        ({"problem_type": "regression"}, "the head has 3 outputs; regression has exactly one"),
        ({"task_type": "CAUSAL_LM"}, "task_type is CAUSAL_LM, but there are head tensors"),
        ({"head": "linear"}, "head must be"),
        ({"head": {"type": "linear", "dropout": 0.1}}, "head must be"),
        ({"head": {"type": "mlp"}}, "head.type must be standard or linear, it is 'mlp'"),
        ({"head": {"pooling": "mean"}}, "head.type must be standard or linear, it is 'None'"),
        ({"head": {"type": "linear", "pooling": "max"}}, "head.pooling of a linear head must be mean, first, last"),
        ({"head": {"type": "linear", "pooling": ["mean"]}}, "head.pooling of a linear head"),
        ({"head": {"type": "standard", "pooling": "mean"}}, "head.pooling of a standard head must be first"),
        ({"head": {"type": "standard"}}, "a standard head on roberta lacks base_model.model.classifier.dense.bias"),
        ({"max_length": 0}, "max_length must be an integer from 1 to the base's 96, it is 0"),
        ({"max_length": 97}, "max_length must be an integer from 1 to the base's 96"),
        ({"max_length": True}, "max_length must be"),
        ({"max_length": "64"}, "max_length must be"),
        ({"modules_to_save": ["pooler"]}, "modules_to_save has 'pooler'"),
    ],
)
def test_bad_head_keys_are_refused(roberta, classifier, changes, part) -> None:
    refused(with_config(classifier, **changes), roberta.info, part)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda t: t.pop(HEAD + "classifier.bias"), "lacks base_model.model.classifier.bias [3]"),
        (lambda t: t.pop(HEAD + "classifier.weight"), "head's tensors are incomplete: there are classifier.bias"),
        (
            lambda t: t.update({HEAD + "classifier.bias": torch.ones(2)}),
            "[2], a linear head on roberta needs [3]",
        ),
        (lambda t: t.update({HEAD + "classifier.weight": torch.ones(3, 31)}), "has the shape [3, 31]"),
        (lambda t: t.update({HEAD + "classifier.weight": torch.ones(96)}), "incomplete"),
        (
            lambda t: t.update({HEAD + "classifier.extra": torch.ones(3)}),
            "does not take base_model.model.classifier.e",
        ),
        (lambda t: t.update({HEAD + "score.weight": torch.ones(3, 32)}), "does not take base_model.model.score.weight"),
        (lambda t: t.update({HEAD + "classifier.modules_to_save.weight": torch.ones(3)}), "does not take"),
    ],
)
def test_head_tensors_must_be_exactly_the_heads(roberta, classifier, change, part) -> None:
    refused(with_tensors(classifier, change), roberta.info, part)


def test_an_encoder_adapter_without_a_head_is_refused(roberta, classifier) -> None:
    def headless(tensors) -> None:
        for name in [name for name in tensors if ".classifier." in name]:
            del tensors[name]

    bare = with_tensors(classifier, headless)
    refused(bare, roberta.info, "task_type is SEQ_CLS, but there are no head tensors")
    for task_type in (None, "CAUSAL_LM"):
        refused(with_config(bare, task_type=task_type), roberta.info, "is an encoder and generates nothing")


def test_label_limit(roberta) -> None:
    names = [f"c{i}" for i in range(513)]
    base = roberta.info
    fits = adapter_files(random_adapter(base, 1, "classification", names[:512]), base)
    assert len(read_adapter(fits, base).spec.labels) == 512
    refused(fits, base, "at most 511 labels", error=TooLarge, max_labels=511)
    over = adapter_files(random_adapter(base, 1, "classification", names), base)
    refused(over, base, "the head has 513 outputs, at most 512 labels", error=TooLarge)


def test_form_labels_need_a_head(llama) -> None:
    files = adapter_files(random_adapter(llama.info, 1), llama.info)
    refused(files, llama.info, "labels were given, but the adapter has no head tensors", labels=["a"])


def test_a_decoder_may_classify(llama) -> None:
    for adapter in (standard(llama.info), random_adapter(llama.info, 1, "classification", list("abcde"))):
        again = read_adapter(adapter_files(adapter, llama.info), llama.info)
        assert again.digest == adapter.digest
        assert again.spec.head.pooling == "last"
