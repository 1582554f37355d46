"""The proof at start, and what it must not let through."""

from dataclasses import replace

import pytest
import torch
from cdvft.backbone import load_backbone
from cdvft.errors import InvalidAdapter, UnsupportedBase
from cdvft.prepared import prepare_adapter
from cdvft_server.engine import AdapterPool, Engine, EngineConfig, runners
from cdvft_server.engine.allowlist import refuse_unsupported
from cdvft_server.engine.attention import BLOCK, pieces_of
from cdvft_server.engine.kernels import CausalMask
from cdvft_server.engine.runners import Runner

from tests.tiny import random_adapter, tiny_bert, tiny_llama

ROPE = {"rope_theta": 10000.0}


def engine(backbone, **config) -> Engine:
    return Engine(backbone, AdapterPool("cpu", 1 << 20), EngineConfig(**config))


@pytest.mark.parametrize("name", ["llama", "roberta", "bert"])
@pytest.mark.parametrize("context", [None, 1, 2, 40])
def test_sound_bases_pass(request, name, context):
    engine(request.getfixturevalue(name), context_length=context).prove()


@pytest.mark.parametrize("name", ["llama", "roberta", "bert"])
def test_padded_groups_pass_too(request, padded_groups, name):
    own = engine(request.getfixturevalue(name))
    assert own._core.runner._kernel.style == "groups"
    own.prove()


@pytest.mark.parametrize("name", ["llama", "roberta", "bert"])
def test_torchs_own_attention_passes_too(request, name):
    own = engine(request.getfixturevalue(name), kernel="torch")
    assert own.attention == "views"
    own.prove()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("make", [tiny_llama, tiny_bert])
def test_half_precision_passes_within_its_tolerance(tmp_path, make, dtype):
    engine(load_backbone(str(make(tmp_path / "base")), dtype=dtype)).prove()


def test_the_context_spans_several_blocks_of_queries(tmp_path):
    backbone = load_backbone(str(tiny_llama(tmp_path / "base", max_position_embeddings=3 * BLOCK + 7)))
    engine(backbone).prove()


FAULTS = {
    "a lost mask": (CausalMask, "view", lambda self, queries, keys: None),
    "keys of later tokens": (
        runners,
        "pieces_of",
        lambda *given: [replace(p, causal=False) for p in pieces_of(*given)],
    ),
    "positions restart in a chunk": (Runner, "_positions", lambda self, s: range(s.length)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_forward_is_refused(llama, monkeypatch, fault):
    monkeypatch.setattr(*FAULTS[fault])
    with pytest.raises(UnsupportedBase, match="packed and plain forward differ"):
        engine(llama, kernel="torch" if fault == "a lost mask" else "auto").prove()


@pytest.mark.parametrize("name", ["roberta", "bert"])
def test_wrong_encoder_positions_are_refused(request, monkeypatch, name):
    right = Runner._positions
    monkeypatch.setattr(Runner, "_positions", lambda self, s: [max(p - 1, 0) for p in right(self, s)])
    with pytest.raises(UnsupportedBase, match="packed and plain forward differ"):
        engine(request.getfixturevalue(name)).prove()


def test_weights_that_are_no_numbers_are_refused(tmp_path):
    backbone = load_backbone(str(tiny_llama(tmp_path / "base")))
    backbone.model.norm.weight[0] = torch.nan
    with pytest.raises(UnsupportedBase, match="differ by nan"):
        engine(backbone).prove()


def with_config(backbone, **changes):
    """The backbone as if its config.json said so."""
    config = type(backbone.config).from_dict(backbone.config.to_dict() | changes)
    return replace(backbone, config=config)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("llama", {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, **ROPE}}),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, **ROPE}}),
        ("llama", {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5, **ROPE}}),
        ("llama", {"sliding_window": 255}),
        ("llama", {"attention_window": [128, 128]}),
        ("llama", {"attn_logit_softcapping": 30.0}),
        ("llama", {"final_logit_softcapping": 30.0}),
        ("llama", {"is_causal": False}),
        ("llama", {"layer_types": ["full_attention", "sliding_attention"]}),
        ("llama", {"logit_scale": 0.0625}),
        ("llama", {"embedding_multiplier": 12.0}),
        ("llama", {"quantization_config": {"quant_method": "gptq"}}),
        ("llama", {"alibi": True}),
        ("roberta", {"position_embedding_type": "relative_key"}),
        ("roberta", {"is_decoder": True}),
        ("bert", {"add_cross_attention": True}),
        ("bert", {"position_embedding_type": "relative_key_query"}),
        ("bert", {"chunk_size_feed_forward": 16}),
        ("bert", {"is_causal": True}),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_configs_beyond_the_allow_list_are_refused_by_key(request, name, changes):
    with pytest.raises(UnsupportedBase, match=rf"config\.json: {next(iter(changes))} = "):
        refuse_unsupported(with_config(request.getfixturevalue(name), **changes), 256)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, **ROPE}}),
        ("llama", {"sliding_window": 256}),
        ("llama", {"sliding_window": 16, "use_sliding_window": False}),
        ("llama", {"sliding_window": None, "layer_types": ["full_attention"] * 2, "logit_scale": 1.0}),
        ("llama", {"attention_bias": True, "mlp_bias": True, "attention_dropout": 0.1, "hidden_act": "gelu"}),
        ("llama", {"pretraining_tp": 2, "model_max_length": 4096, "unsloth_version": "x", "custom_key": [1]}),
        ("roberta", {"position_embedding_type": "absolute", "gradient_checkpointing": False}),
        ("bert", {"pooler_type": "first_token_transform", "directionality": "bidi", "is_causal": False}),
    ],
)
def test_configs_that_do_no_harm_pass(request, name, changes):
    refuse_unsupported(with_config(request.getfixturevalue(name), **changes), 256)


@pytest.mark.parametrize(("name", "task"), [("llama", "lm"), ("llama", "classification"), ("roberta", "regression")])
def test_probe_finds_adapters_that_are_not_finite(request, name, task):
    backbone = request.getfixturevalue(name)
    own = engine(backbone)
    good = prepare_adapter(random_adapter(backbone.info, 1, task))
    own.probe(good)
    site = next(iter(good.tables))
    tables = {**good.tables, site: {n: torch.full_like(t, 1e38) for n, t in good.tables[site].items()}}
    with pytest.raises(InvalidAdapter, match="not finite"):
        own.probe(replace(good, tables=tables))
    if task != "lm":
        head = {n: torch.full_like(t, torch.inf) for n, t in good.head_tensors.items()}
        with pytest.raises(InvalidAdapter, match="not finite"):
            own.probe(replace(good, head_tensors=head))
