import hashlib
import struct

import numpy as np
import pytest
import torch
from cdvft_server.engine.sampling import SamplingError, draw, probabilities, sample, sample_rows
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.server.engine.harness import params, serving
from tests.tiny import random_adapter

finite = st.floats(-30, 30, width=32)
rows = st.lists(finite, min_size=1, max_size=40)
sampled = st.builds(
    params,
    temperature=st.floats(0.05, 10),
    top_k=st.sampled_from([0, 1, 2, 5, 1000]),
    top_p=st.sampled_from([1.0, 0.9, 0.5, 0.01]),
    seed=st.integers(-(2**63), 2**64 - 1),
)


def oracle(logits, p):
    """Weights by the module's words, in numpy float64."""
    scaled = np.asarray(logits, np.float64) / p.temperature
    weights = np.exp(scaled - scaled.max())
    order = sorted(range(len(logits)), key=lambda i: (-scaled[i], i))
    order = order[: p.top_k or None]
    kept, mass, total = [], 0.0, sum(weights[i] for i in order)
    for i in order:
        kept.append(i)
        mass += weights[i] / total
        if mass >= p.top_p:
            break
    cut = np.zeros_like(weights)
    cut[kept] = weights[kept]
    return cut / weights.sum(), abs(mass - p.top_p)


@given(rows, sampled)
def test_the_kept_tokens_and_their_weights(logits, p):
    expected, margin = oracle(logits, p)
    assume(margin > 1e-9 or p.top_p == 1)
    own = probabilities(torch.tensor(logits), p).numpy()
    np.testing.assert_allclose(own, expected, rtol=1e-9, atol=1e-15)


@given(st.integers(0, 1000), st.integers(1, 3000), st.floats(0.01, 3), sampled)
def test_large_vocabularies_with_ties(seed, size, spread, p):
    generator = torch.Generator().manual_seed(seed)
    logits = (torch.randn(size, generator=generator) * spread).half().float()  # halves tie often
    expected, margin = oracle(logits.tolist(), p)
    assume(margin > 1e-9 or p.top_p == 1)
    np.testing.assert_allclose(probabilities(logits, p).numpy(), expected, rtol=1e-9, atol=1e-15)


@given(rows, sampled, st.integers(0, 10_000))
def test_the_token_is_the_first_whose_sum_exceeds_the_draw(logits, p, step):
    weights, margin = oracle(logits, p)
    assume(margin > 1e-9 or p.top_p == 1)
    sums = np.cumsum(weights)
    target = draw(p.seed, step) * sums[-1]
    assume(np.abs(sums - target).min() > 1e-9)
    assert sample(torch.tensor(logits), p, step) == int(np.argmax(sums > target))


@given(rows)
def test_temperature_zero_is_the_smallest_of_the_largest(logits):
    assert sample(torch.tensor(logits), params(), 0) == logits.index(max(logits))


@given(st.lists(rows.map(lambda r: (r * 40)[:40]), min_size=1, max_size=8), st.data())
def test_rows_equal_one_by_one(matrix, data):
    own = [data.draw(st.one_of(st.just(params()), sampled)) for _ in matrix]
    steps = [data.draw(st.integers(0, 99)) for _ in matrix]
    logits = torch.tensor(matrix)
    assert sample_rows(logits, own, steps) == [sample(logits[i], own[i], steps[i]) for i in range(len(own))]


@given(st.integers(-(2**63), 2**64), st.integers(0, 2**40))
def test_the_draw_is_blake2b(seed, step):
    raw = hashlib.blake2b(struct.pack("<QQ", seed % 2**64, step), digest_size=8).digest()
    assert draw(seed, step) == (struct.unpack("<Q", raw)[0] >> 11) / 2**53
    assert 0 <= draw(seed, step) < 1


def test_draws_are_uniform_and_streams_differ():
    draws = np.array([draw(seed, step) for seed in range(100) for step in range(100)])
    assert len(set(draws)) == len(draws)
    counts, _ = np.histogram(draws, bins=20, range=(0, 1))
    assert ((counts - 500) ** 2 / 500).sum() < 43.8  # chi-square, 19 degrees of freedom, p = 0.001
    assert abs(np.corrcoef(draws[:-1], draws[1:])[0, 1]) < 0.03


def test_frequencies_follow_the_softmax():
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0, 0.5, -30.0])
    p = params(temperature=0.8, seed=3)
    counts = np.bincount([sample(logits, p, step) for step in range(20_000)], minlength=6)
    expected = torch.softmax(logits.double() / 0.8, -1).numpy() * 20_000
    assert ((counts[:5] - expected[:5]) ** 2 / expected[:5]).sum() < 18.5  # 4 degrees of freedom, p = 0.001
    assert counts[5] == 0


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers_fail_their_row_only(broken, temperature):
    logits = torch.zeros(3, 5)
    logits[1, 2] = broken
    p = params(temperature=temperature)
    results = sample_rows(logits, [p] * 3, [0] * 3)
    assert isinstance(results[1], SamplingError)
    assert [results[0], results[2]] == [sample(logits[0], p, 0)] * 2
    with pytest.raises(SamplingError, match="not finite"):
        sample(logits[1], p, 0)


def test_tokens_of_weight_zero_are_never_picked():
    logits = torch.full((50,), -torch.inf)
    logits[[7, 31]] = 0.0
    assert {sample(logits, params(temperature=1.0), step) for step in range(200)} == {7, 31}


def test_extreme_temperatures():
    logits = torch.tensor([1.0, 1.0 + 1e-6, -5.0])
    assert {sample(logits, params(temperature=1e-300), step) for step in range(50)} == {1}
    assert {sample(logits, params(temperature=100.0), step) for step in range(50)} == {0, 1, 2}


def test_seeded_sampling_does_not_depend_on_the_batch(llama):
    adapters = [None, random_adapter(llama.info, 1), random_adapter(llama.info, 2, num_factors=3)]
    settings = [
        {"temperature": 1.0, "seed": 5},
        {"temperature": 0.7, "top_p": 0.9, "seed": 6},
        {"temperature": 2.0, "top_k": 10, "seed": -7},
        {"temperature": 1.3, "top_k": 5000, "top_p": 0.5, "seed": 2**64 - 1},
    ]
    work = [(adapter, setting) for adapter in adapters for setting in settings]
    prompt = list(range(10, 24))
    with serving(llama) as served:
        alone = []
        for adapter, setting in work:
            listener = served.generate(prompt, adapter, max_tokens=24, **setting)
            listener.wait()
            alone.append(listener.tokens)
    with serving(llama, max_batch_tokens=20) as served:
        requests = [served.request(prompt, a, sampling=params(24, **setting)) for a, setting in work]
        noise = [served.request(prompt[: 1 + i], adapters[i % 3], sampling=params(30)) for i in range(10)]
        together = served.send(requests)
        served.send(noise)
        assert [listener.reason() for listener in together] == ["length"] * len(work)
        assert [listener.tokens for listener in together] == alone
    assert len({tuple(tokens) for tokens in alone}) == len(work)
