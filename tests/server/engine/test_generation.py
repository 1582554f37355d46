"""Token-exact greedy equality with transformers' generate on merged weights, in batches of everything at once."""

import random

import pytest
from cdvft.backbone import load_backbone

from tests.server.engine.harness import serving
from tests.server.engine.reference import Decoder
from tests.tiny import random_adapter, tiny_llama

LONG = 40


@pytest.fixture(scope="module")
def fleet(llama):
    """Adapters of several signatures: other sites, partitions, m = 3, conventions, grids, padding."""
    base = llama.info
    return [
        None,
        random_adapter(base, 1),
        random_adapter(base, 2),
        random_adapter(base, 3),
        random_adapter(base, 4, partition_size=8),
        random_adapter(base, 5, partition_size=8),
        random_adapter(base, 6, num_factors=3),
        random_adapter(base, 7, targets=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")),
        random_adapter(base, 8, num_factors=3, partition_size=5, padding="cyclic", circulant_convention="first_row"),
        random_adapter(base, 9, targets=("down_proj",), block_grid="square", alpha=0.5),
    ]


def prompts(count: int, seed: int, longest: int = LONG) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(3, 259) for _ in range(rng.randint(1, longest))] for _ in range(count)]


@pytest.mark.parametrize("budget", [2048, 24, 7])
def test_mixed_batches_equal_merged_weights(llama, decoder, fleet, budget):
    work = [(prompt, fleet[i % len(fleet)]) for i, prompt in enumerate(prompts(30, seed=budget))]
    with serving(llama, max_batch_tokens=budget, kv_tokens=700) as served:
        listeners = served.submit(work, max_tokens=20)
        for (prompt, adapter), listener in zip(work, listeners, strict=True):
            assert listener.reason() == "length"
            decoder.assert_greedy(prompt, adapter, listener.tokens, 20)


def test_padded_groups_give_the_same_tokens(llama, decoder, fleet, padded_groups):
    work = [(prompt, fleet[i % len(fleet)]) for i, prompt in enumerate(prompts(20, seed=6))]
    with serving(llama, max_batch_tokens=50) as served:
        for (prompt, adapter), listener in zip(work, served.submit(work, max_tokens=20), strict=True):
            listener.wait()
            decoder.assert_greedy(prompt, adapter, listener.tokens, 20)


def test_adapters_do_change_the_answers(llama, decoder, fleet):
    """Else every equality here would hold for an engine that ignores adapters."""
    answers = {tuple(decoder.greedy([5, 6, 7, 8], adapter, 12)) for adapter in fleet}
    assert len(answers) == len(fleet)


def test_sequences_end_at_eos_and_at_stop_ids(llama, decoder, fleet):
    eos = next(iter(llama.eos_ids))
    with serving(llama) as served:
        work = [(prompt, fleet[i % len(fleet)]) for i, prompt in enumerate(prompts(40, seed=5))]
        listeners = served.submit(work, max_tokens=60, ignore_eos=False)
        for (prompt, adapter), listener in zip(work, listeners, strict=True):
            reason = listener.reason()
            assert reason == ("length" if len(listener.tokens) == 60 else "stop")
            decoder.assert_greedy(prompt, adapter, listener.tokens, 60, eos)
        long = served.generate([5, 6, 7], max_tokens=20)
        long.wait()
        stop = long.tokens[5]
        short = served.generate([5, 6, 7], max_tokens=20, stop_token_ids=frozenset([stop]))
        assert short.reason() == "stop"
        assert short.tokens == long.tokens[: long.tokens.index(stop)]


@pytest.mark.parametrize(
    "shape",
    [
        {"num_key_value_heads": 4},
        {"num_key_value_heads": 1},
        {"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 16},
        {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True, "hidden_act": "gelu"},
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}},
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
    ],
    ids=["mha", "mqa", "wide-heads", "biases", "linear-rope", "llama3-rope"],
)
def test_every_llama_shape(tmp_path, shape):
    folder = tiny_llama(tmp_path / "base", seed=9, **shape)
    backbone, reference = load_backbone(str(folder)), Decoder(folder)
    adapters = [None, random_adapter(backbone.info, 1), random_adapter(backbone.info, 2, num_factors=3)]
    work = [(prompt, adapters[i % 3]) for i, prompt in enumerate(prompts(9, seed=3))]
    with serving(backbone, max_batch_tokens=33) as served:
        for (prompt, adapter), listener in zip(work, served.submit(work, max_tokens=12), strict=True):
            listener.wait()
            reference.assert_greedy(prompt, adapter, listener.tokens, 12)


def test_half_precision_repeats_itself(folders, llama, fleet):
    """In bf16 an answer may depend on its neighbours' rounding, but the same batch gives the same answer."""
    backbone = load_backbone(str(folders["llama"]), dtype="bfloat16")
    work = [(prompt, fleet[i % len(fleet)]) for i, prompt in enumerate(prompts(10, seed=7))]
    with serving(backbone) as served:
        answers = []
        for _ in range(2):
            listeners = served.submit(work, max_tokens=20)
            assert [listener.reason() for listener in listeners] == ["length"] * len(work)
            answers.append([listener.tokens for listener in listeners])
        assert answers[0] == answers[1]


def test_the_whole_context_is_served(llama, decoder, fleet):
    prompt = prompts(1, seed=1, longest=1)[0] * 200
    with serving(llama, max_batch_tokens=64) as served:
        listener = served.generate(prompt, fleet[1], max_tokens=llama.info.max_length - 200)
        assert listener.reason() == "length"
        decoder.assert_greedy(prompt, fleet[1], listener.tokens, llama.info.max_length - 200)


def test_chunked_prefill_at_every_border(llama, decoder, fleet):
    """A prompt of 11 tokens under every budget: the chunks end at every possible place."""
    prompt = prompts(1, seed=8, longest=1)[0] + list(range(20, 30))
    for adapter in (None, fleet[1], fleet[7]):
        expected = decoder.greedy(prompt, adapter, 6)
        for budget in range(1, 13):
            with serving(llama, max_batch_tokens=budget) as served:
                listener = served.generate(prompt, adapter, max_tokens=6)
                listener.wait()
                assert listener.tokens == expected, f"budget {budget}"
