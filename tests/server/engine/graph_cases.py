"""Attention over spans, and whole recorded decode steps, in Triton's interpreter.

test_graphs.py runs this in a process of its own: the interpreter is chosen when triton is first imported.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from cdvft.errors import InvalidAdapter
from cdvft.kernels import choose
from cdvft.methods import Lora
from cdvft.prepared import prepare_adapter
from cdvft_server.engine import graphs, spans
from cdvft_server.engine.spans import KEYS, SpanAttention, parts_of
from hypothesis import given, settings
from hypothesis import strategies as st
from triton.runtime.interpreter import InterpreterBuilder

from tests.server.engine.harness import params, serving
from tests.server.engine.recorders import CallAgain, ExactSpans
from tests.tiny import method_adapter, random_adapter

# |found - exact| / |exact|: of bf16 the interpreter cuts off what a GPU rounds
TOLERANCE = {torch.float32: 1e-6, torch.float16: 2**-10, torch.bfloat16: 2**-7}


def draw(shape, seed: int, dtype: torch.dtype) -> torch.Tensor:
    """Neither symmetric nor centred: means and spreads differ along the last axis."""
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    wave = torch.arange(shape[-1]) / shape[-1]
    return (noise * (0.5 + wave) + 0.7 * wave).to(dtype)


def check(lengths: list[int], kv_heads: int, groups: int, d: int, dtype: torch.dtype) -> None:
    """Spans in the reverse order of their tokens, NaN between them; then other spans by the same call."""
    gap = 2
    arena = sum(lengths) + gap * (len(lengths) + 1)
    query = draw((kv_heads, len(lengths) * groups, d), 1, dtype)
    key, value = torch.full((2, arena, kv_heads, d), torch.nan, dtype=dtype)
    start, length = torch.zeros(2, len(lengths), dtype=torch.int64)
    attention, exact = SpanAttention(start, length), ExactSpans(start, length)
    for own in (lengths, lengths[::-1]):
        key.fill_(torch.nan)
        value.fill_(torch.nan)
        at = arena
        for k, n in enumerate(own):
            at -= n + gap
            key[at : at + n], value[at : at + n] = draw((2, n, kv_heads, d), k, dtype)
            start[k], length[k] = at, n
        found = attention(query, key, value, None)
        expected = exact(query.double(), key.double(), value.double(), None)
        assert found.dtype == dtype
        assert float((found.double() - expected).norm() / expected.norm()) < TOLERANCE[dtype]


@pytest.mark.parametrize(
    ("kv_heads", "groups", "d", "dtype"),
    [
        (2, 2, 8, torch.float32),
        (1, 1, 256, torch.float32),
        (1, 17, 80, torch.float32),
        (3, 1, 5, torch.float16),
        (1, 2, 64, torch.float16),
        (2, 4, 64, torch.bfloat16),
    ],
)
def test_shapes(kv_heads: int, groups: int, d: int, dtype: torch.dtype) -> None:
    check([1, KEYS, 2 * KEYS + 5], kv_heads, groups, d, dtype)


@given(st.lists(st.integers(1, 70), min_size=1, max_size=3), st.integers(1, 2), st.integers(1, 3), st.integers(1, 40))
@settings(max_examples=8)
def test_any_spans(lengths: list[int], kv_heads: int, groups: int, d: int) -> None:
    check(lengths, kv_heads, groups, d, torch.float32)


@pytest.mark.parametrize("parts", [1, 2, 7])
def test_parts(parts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also more of them than a span has steps."""
    monkeypatch.setattr(spans, "parts_of", lambda *_: parts)
    check([2, 4 * KEYS], 1, 2, 8, torch.float32)


def test_large_scores_do_not_overflow() -> None:
    start, length = torch.tensor([0]), torch.tensor([70])
    query, (key, value) = 100 * draw((1, 2, 16), 1, torch.float32), 100 * draw((2, 70, 1, 16), 2, torch.float32)
    found = SpanAttention(start, length)(query, key, value, 0.5)
    torch.testing.assert_close(found, ExactSpans(start, length)(query, key, value, 0.5))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_fits_the_tensor_cores(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter multiplies in fp32; here operands lose the bits that TF32 drops."""
    exact = InterpreterBuilder.create_dot

    def tf32(self, a, b, *others):
        for operand in (a, b):
            operand.data = (operand.data.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)
        return exact(self, a, b, *others)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", tf32)
    check([1, 2 * KEYS + 5], 1, 2, 16, dtype)


def test_how_many_parts() -> None:
    assert parts_of(1, 8, 100_000) == 16
    assert parts_of(1, 8, 2 * KEYS + 1) == 3
    assert parts_of(16, 8, 100_000) == 2
    assert parts_of(256, 8, 100_000) == 1


def test_a_probe_runs_the_adapter_through_the_kernel(llama) -> None:
    """In a row of its own: the kernel skips row 0."""
    good = prepare_adapter(random_adapter(llama.info, 1, targets=("q_proj",)))
    tables = {site: {n: torch.full_like(t, torch.nan) for n, t in own.items()} for site, own in good.tables.items()}
    with serving(llama, kernel="triton", kv_tokens=32, context_length=4, start=False) as served:
        served.engine.probe(good)
        with pytest.raises(InvalidAdapter, match="not finite"):
            served.engine.probe(replace(good, tables=tables))


def test_recorded_steps_with_both_kernels(llama, decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rows of CDVFT by the fused kernel, LoRA by its rows, and the base, whose place is padding when it leaves."""
    monkeypatch.setattr(graphs, "AFTER", 1)
    adapters = [None, *(random_adapter(llama.info, seed, targets=("q_proj",)) for seed in (1, 2))]
    work = [(own, 4 if own is None else 6) for own in (*adapters, method_adapter(llama.info, Lora(), 0, 3))]
    with serving(llama, kernel="triton", kv_tokens=32, recorder=CallAgain(SpanAttention)) as served:
        assert served.engine.recording.on
        requests = [served.request([5, 6 + k], own, sampling=params(n)) for k, (own, n) in enumerate(work)]
        bank = served.pool.placements([requests[1].lease])[0].bank
        site = next(iter(bank.tables))
        assert choose(bank.tables[site], bank.layouts[site], "triton").name == "triton"
        served.send(requests)
        for k, (request, (own, n)) in enumerate(zip(requests, work, strict=True)):
            assert request.deliver.reason() == "length"
            decoder.assert_greedy([5, 6 + k], own, request.deliver.tokens, n)
        stats = served.engine.stats()
        assert (stats.graphs, stats.graph_replays, stats.graphs_refused) == (1, 3, 0)
