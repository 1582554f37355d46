"""What an upload may be: config keys, tensors and sites, taken or refused by name (docs: formats)."""

import json
from dataclasses import replace

import pytest
import torch
from cdvft.checkpoint import adapter_files, read_adapter
from cdvft.errors import InvalidAdapter
from hypothesis import given
from hypothesis import strategies as st

from tests.adapters.editing import REMOVED, renamed, with_config, with_tensors
from tests.tiny import random_adapter

Q = "base_model.model.model.layers.0.self_attn.q_proj."
PEFT_BOOKKEEPING = {
    "auto_mapping": {"base_model_class": "LlamaModel", "parent_library": "transformers"},
    "base_model_name_or_path": "somebody/some-base",
    "revision": "main",
    "inference_mode": True,
    "peft_version": "0.21.2",
    "exclude_modules": None,
    "layers_to_transform": None,
    "layers_pattern": None,
    "modules_to_save": None,
    "fan_in_fan_out": False,
    "bias": "none",
    "init_weights": True,
    "init_cdvft_weights": "gaussian",
    "cdvft_dropout": 0.1,
    "dropout": 0.05,
    "hidden_dropout_prob": 0.1,
    "rank_pattern": {},
    "use_dora": False,
    "trainable_token_indices": None,
    "some_new_option": "",
    "another_new_option": [],
}


@pytest.fixture
def files(llama):
    return adapter_files(random_adapter(llama.info, 1), llama.info)


def refused(files, base, *parts: str, labels=None) -> None:
    with pytest.raises(InvalidAdapter) as caught:
        read_adapter(files, base, labels)
    for part in parts:
        assert part in str(caught.value)


def test_round_trip_for_every_family_and_task(llama, roberta, bert) -> None:
    for backbone in (llama, roberta, bert):
        base = backbone.info
        for task in ("lm", "classification", "regression"):
            if task == "lm" and base.family.kind == "encoder":
                continue
            labels = ["α", "b", "a"] if task == "classification" else None
            length = None if task == "lm" else 17
            adapter = random_adapter(base, 2, task, labels, max_length=length, template="{{ messages[0].content }}")
            files = adapter_files(adapter, base)
            again = read_adapter(files, base)
            assert (again.digest, again.spec, again.base_verified) == (adapter.digest, adapter.spec, True)
            assert adapter_files(again, base) == files


def test_peft_bookkeeping_and_training_options_pass(llama, files) -> None:
    plain = read_adapter(files, llama.info)
    assert read_adapter(with_config(files, **PEFT_BOOKKEEPING), llama.info).digest == plain.digest


@pytest.mark.parametrize(
    ("key", "value", "part"),
    [
        ("use_dora", True, "DoRA is not supported"),
        ("use_qalora", True, "QALoRA"),
        ("fan_in_fan_out", True, "it must be false"),
        ("bias", "all", 'it must be "none"'),
        ("target_parameters", ["mlp.experts"], "bare parameters"),
        ("layer_replication", [[0, 2]], "replicated layers"),
        ("trainable_token_indices", [1, 2], "trained tokens"),
        ("scaling", 2.0, "unknown option 'scaling' = 2.0; known: "),
        ("r", 8, "unknown option 'r' = 8"),
        ("mystery", 0, "unknown option 'mystery'"),
        ("mystery", True, "unknown option 'mystery'"),
        ("peft_type", "IA3", "peft_type 'IA3' is not supported; supported: CDVFT, LORA, C3A"),
        ("peft_type", None, "peft_type None"),
        ("peft_type", ["CDVFT"], "peft_type"),
        ("task_type", "TOKEN_CLS", "task_type 'TOKEN_CLS' is not served; served: CAUSAL_LM, SEQ_CLS or null"),
        ("task_type", ["CAUSAL_LM"], "task_type"),
        ("task_type", "SEQ_CLS", "there are no head tensors"),
        ("modules_to_save", ["lm_head"], "modules_to_save has 'lm_head'; only a head"),
        ("modules_to_save", ["embed_tokens"], "embed_tokens"),
        ("modules_to_save", {"a": 1}, "modules_to_save must be a list of names"),
        ("modules_to_save", ["classifier"], "modules_to_save is set, but the adapter has no head tensors"),
        ("base_model_name_or_path", 7, "base_model_name_or_path must be a string"),
        ("labels", ["a", "b"], "labels is set, but the adapter has no head tensors"),
        ("head", {"type": "linear"}, "head is set"),
        ("max_length", 16, "max_length is set"),
        ("problem_type", "regression", "problem_type is set"),
        ("target_modules", 3, "target_modules must be a string or a list of at most 1024 names"),
        ("target_modules", ["q_proj", 3], "target_modules must be"),
        ("target_modules", ["q_proj", ""], "target_modules has an empty string among its names; leave it out"),
        ("layers_pattern", ["a"] * 1025, "layers_pattern must be a string or a list of at most 1024 names"),
        ("target_modules", r"(a)\1", "target_modules pattern"),
        ("target_modules", "x" * 5000, "has a pattern of 5000 characters"),
        ("layers_to_transform", "0", "layers_to_transform must be a layer number"),
        ("layers_to_transform", [True], "layers_to_transform must be"),
        ("layers_pattern", [["layers"]], "layers_pattern must be"),
        ("partition_size", 7, "has the shape"),
        ("num_factors", 3, "lacks cdvft_circ_sq [1, 32]"),
        ("site_shapes", {"model.layers.0.self_attn.q_proj": [32, 31]}, "the base has [32, 32]"),
    ],
)
def test_an_option_that_cannot_be_honoured_is_refused(llama, files, key, value, part) -> None:
    refused(with_config(files, **{key: value}), llama.info, part)


def test_missing_peft_type_is_refused(llama, files) -> None:
    refused(with_config(files, peft_type=REMOVED), llama.info, "peft_type None is not supported")


@pytest.mark.parametrize(
    ("config", "part"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"[]", "must be a JSON object, it is a list"),
        (b'"CDVFT"', "must be a JSON object, it is a str"),
        (b'{"alpha": 1, "alpha": 2}', "duplicate key 'alpha'"),
        (b'{"site_shapes": {"a": [1, 1], "a": [1, 1]}}', "duplicate key 'a'"),
        (b'{"alpha": NaN}', "NaN is not a JSON number"),
        (b'{"alpha": -Infinity}', "-Infinity is not a JSON number"),
        (b'{"alpha": 1e999}', "out of range"),
        (b'{"a": "\xff"}', "not UTF-8 (byte 7)"),
        (b'{"a": "\\ud800"}', "half a surrogate pair"),
        ("\ufeff{}".encode(), "not valid JSON"),
        ('{"alpha": 1}'.encode("utf-16"), "not UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b" " * (1 << 20) + b"{}", "1048578 bytes long, at most 1048576"),
        (b'{"a": ' + b"9" * 10_000 + b"}", "not valid JSON"),
    ],
)
def test_a_config_that_is_not_plain_json_is_refused(llama, files, config: bytes, part: str) -> None:
    refused(replace(files, config=config), llama.info, "adapter_config.json", part)


def test_another_base_is_refused_with_both_digests_and_none_is_unverified(llama, roberta, files) -> None:
    other = "sha256:" + "1" * 64
    refused(with_config(files, base_digest=other), llama.info, other, llama.info.digest, "another base")
    refused(with_config(files, base_digest=5), llama.info, "base_digest")
    unverified = read_adapter(with_config(files, base_digest=REMOVED), llama.info)
    assert not unverified.base_verified
    assert unverified.digest == read_adapter(files, llama.info).digest
    again = adapter_files(unverified, llama.info)
    assert json.loads(again.config)["base_digest"] is None
    assert not read_adapter(again, llama.info).base_verified
    classifier = adapter_files(random_adapter(roberta.info, 1, "classification"), roberta.info)
    refused(
        with_config(classifier, base_digest=None), llama.info, "belongs to no linear layer", "layers are named like"
    )


def test_family_prefix_may_be_there_or_not_but_not_both(llama, files) -> None:
    bare = renamed(files, "base_model.model.model.", "base_model.model.")
    assert read_adapter(bare, llama.info).digest == read_adapter(files, llama.info).digest
    short = Q.replace("model.model.model.", "model.model.")

    def twice(tensors) -> None:
        tensors[short + "cdvft_diag_in"] = tensors[Q + "cdvft_diag_in"].clone()

    refused(with_tensors(files, twice), llama.info, "layers.0.self_attn.q_proj.cdvft_diag_in is there twice")
    refused(renamed(files, "base_model.model.", ""), llama.info, "does not start with base_model.model.")


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("base_model.model.model.layers.0.self_attn.q_proj.cdvft_extra", "q_proj.cdvft_extra is not a tensor of CDVFT"),
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight", "lora_A.weight is not a tensor of CDVFT"),
        ("base_model.model.model.layers.0.self_attn.q_proj.bias", "q_proj.bias is not a tensor"),
        ("base_model.model.model.layers.9.self_attn.q_proj.cdvft_diag_in", "belongs to no linear layer of the base"),
        ("base_model.model.model.layers.0.input_layernorm.weight", "belongs to no linear layer"),
        ("base_model.model.model.layers.0.self_attn.q_proj", "belongs to no linear layer"),
        ("base_model.model.model.embed_tokens.lora_embedding_A", "only linear layers can be adapted"),
        ("base_model.model.model.embed_tokens.weight", "only linear layers can be adapted"),
        ("base_model.model.model.embed_tokens.trainable_tokens_delta", "only linear layers can be adapted"),
        ("base_model.model.lm_head.cdvft_circ", "only linear layers can be adapted"),
        ("base_model.model.lm_head.weight", "only linear layers can be adapted"),
        ("base_model.model.roberta.embeddings.word_embeddings.weight", "only linear layers can be adapted"),
        ("base_model.model.classifier.weight", "task_type is CAUSAL_LM, but there are head tensors"),
        ("base_model.model.pooler.dense.cdvft_diag_in", "belongs to no linear layer"),
    ],
)
def test_a_tensor_that_nothing_takes_is_refused(llama, files, name: str, part: str) -> None:
    refused(with_tensors(files, lambda tensors: tensors.update({name: torch.ones(4)})), llama.info, part)


def test_every_targeted_layer_must_be_complete(llama, files) -> None:
    gone = with_tensors(files, lambda tensors: tensors.pop(Q + "cdvft_circ"))
    refused(gone, llama.info, "layers.0.self_attn.q_proj lacks cdvft_circ [1, 1, 32]")

    def drop_site(tensors) -> None:
        for name in [name for name in tensors if name.startswith(Q)]:
            del tensors[name]

    missing = with_tensors(files, drop_site)
    refused(missing, llama.info, "targets layers.0.self_attn.q_proj, but there are no tensors for it")
    narrowed = with_config(missing, target_modules=["v_proj", "layers.1.self_attn.q_proj"])
    assert len(read_adapter(narrowed, llama.info).spec.sites) == 3
    excluded = with_config(missing, exclude_modules=["layers.0.self_attn.q_proj"])
    assert len(read_adapter(excluded, llama.info).spec.sites) == 3
    refused(with_config(files, target_modules="all-linear"), llama.info, "targets layers.0.mlp.down_proj")


def test_sites_are_what_the_tensors_name(llama, files) -> None:
    """Whatever target_modules leaves out or is not said: the tensors are there, so they count."""
    plain = read_adapter(files, llama.info)
    for target in (None, [], ["q_proj"], REMOVED):
        assert read_adapter(with_config(files, target_modules=target), llama.info).digest == plain.digest


def test_no_site_at_all_is_refused(roberta) -> None:
    files = adapter_files(random_adapter(roberta.info, 1, "classification"), roberta.info)

    def only_head(tensors) -> None:
        for name in [name for name in tensors if ".classifier." not in name]:
            del tensors[name]

    refused(with_tensors(files, only_head), roberta.info, "no tensor for any layer of the base")


def test_finite_values_whose_sum_is_not(llama, files) -> None:
    def enlarge(tensors):
        for tensor in tensors.values():
            tensor.fill_(3e38)

    assert read_adapter(with_tensors(files, enlarge), llama.info).num_parameters


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_infinity_name_the_tensor(llama, roberta, files, value: float) -> None:
    def poison(tensors) -> None:
        tensors[Q + "cdvft_circ"][0, 0, 3] = value

    refused(with_tensors(files, poison), llama.info, "layers.0.self_attn.q_proj.cdvft_circ has NaN or infinite values")
    classifier = adapter_files(random_adapter(roberta.info, 1, "classification"), roberta.info)

    def poison_head(tensors) -> None:
        tensors["base_model.model.classifier.bias"][0] = value

    refused(with_tensors(classifier, poison_head), roberta.info, "classifier.bias has NaN or infinite values")


def test_other_float_types_are_converted(llama, files) -> None:
    plain = read_adapter(files, llama.info)
    wide = with_tensors(files, lambda tensors: tensors.update({k: t.double() for k, t in tensors.items()}))
    assert read_adapter(wide, llama.info).digest == plain.digest
    for dtype in (torch.float16, torch.bfloat16):
        narrow = with_tensors(files, lambda ts, d=dtype: ts.update({k: t.to(d) for k, t in ts.items()}))
        adapter = read_adapter(narrow, llama.info)
        site, tensors = next(iter(adapter.tensors.items()))
        assert tensors["cdvft_circ"].dtype == torch.float32
        assert torch.equal(tensors["cdvft_circ"], plain.tensors[site]["cdvft_circ"].to(dtype).float())
    huge = torch.full((32,), 1e300, dtype=torch.float64)
    too_large = with_tensors(files, lambda tensors: tensors.update({Q + "cdvft_diag_in": huge}))
    refused(too_large, llama.info, "NaN or infinite values in fp32")


def test_templates(llama, files) -> None:
    assert read_adapter(replace(files, template=b"{{ messages }}"), llama.info).spec.template == "{{ messages }}"
    exactly = b"x" * 16384
    assert read_adapter(replace(files, template=exactly), llama.info).spec.template == exactly.decode()
    refused(replace(files, template=exactly + b"x"), llama.info, "16385 bytes long, at most 16384")
    refused(replace(files, template=b"\xff"), llama.info, "chat_template.jinja is not UTF-8")
    refused(replace(files, template=b"{% for %}"), llama.info, "chat_template.jinja")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)


@given(data=st.data())
def test_whatever_a_config_says_it_is_read_or_refused(llama, roberta, data) -> None:
    for backbone, task in ((llama, "lm"), (roberta, "classification")):
        adapter = random_adapter(backbone.info, 1, task)
        files = adapter_files(adapter, backbone.info)
        keys = sorted([*json.loads(files.config), "exclude_modules", "layers_to_transform", "layers_pattern", "other"])
        changed = with_config(files, **{data.draw(st.sampled_from(keys)): data.draw(json_values)})
        try:
            again = read_adapter(changed, backbone.info)
        except InvalidAdapter:
            continue
        assert again.tensors.keys() == adapter.tensors.keys()
