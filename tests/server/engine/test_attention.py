"""Packed attention against a naive one in float64, over every kind of segment."""

import pytest
import torch
from cdvft_server.engine.attention import BLOCK, AttentionPlan, Piece, packed_attention, pieces_of
from cdvft_server.engine.kernels import CausalMask, KernelMaker
from cdvft_server.engine.kv import KvArena
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

D = 8
CPU = torch.device("cpu")


def naive(query, keys, values, first):
    """`query [H, n, d]` at positions first.., `keys`, `values [H, L, d]`, one row at a time, in float64."""
    rows = []
    for i in range(query.shape[1]):
        seen = first + i + 1
        scores = torch.einsum("hd,hld->hl", query[:, i].double(), keys[:, :seen].double()) / D**0.5
        rows.append(torch.einsum("hl,hld->hd", scores.softmax(-1), values[:, :seen].double()))
    return torch.stack(rows)  # [n, H, d]


class Layer(nn.Module):
    layer_idx = 1


STYLES = ("native", "views", "groups")


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(("kv_heads", "groups"), [(1, 1), (2, 3), (4, 1), (1, 4)])
@given(
    segments=st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9)), min_size=1, max_size=5),
    seed=st.integers(0, 9),
)
def test_segments_see_themselves_only(kv_heads, groups, style, segments, seed):
    """(past, length) segments; the arena beyond each segment's keys is NaN and must not be seen."""
    generator = torch.Generator().manual_seed(seed)
    size = sum(past + length for past, length in segments)
    arena = KvArena(size, layers=2, kv_heads=kv_heads, head_dim=D, dtype=torch.float32, device=CPU)
    keys = torch.randn(size, kv_heads, D, generator=generator)
    values = torch.randn(size, kv_heads, D, generator=generator)
    arena.keys[1].fill_(torch.nan)
    arena.values[1].fill_(torch.nan)
    pieces, slots, start, kv_start = [], [], 0, 0
    for past, length in segments:
        arena.keys[1][kv_start : kv_start + past] = keys[kv_start : kv_start + past]
        arena.values[1][kv_start : kv_start + past] = values[kv_start : kv_start + past]
        pieces += pieces_of(start, length, past, kv_start)
        slots += range(kv_start + past, kv_start + past + length)
        start, kv_start = start + length, kv_start + past + length
    plan = AttentionPlan(KernelMaker(groups, torch.float32, CPU, style)(pieces), arena, torch.tensor(slots))
    query = torch.randn(1, kv_heads * groups, start, D, generator=generator)
    new = [t[slots].transpose(0, 1)[None] for t in (keys, values)]
    output, _ = packed_attention(Layer(), query, *new, None, scaling=D**-0.5, packed=plan)
    start = kv_start = 0
    for past, length in segments:
        own = [
            t[kv_start : kv_start + past + length].transpose(0, 1).repeat_interleave(groups, 0) for t in (keys, values)
        ]
        expected = naive(query[0, :, start : start + length], *own, past)
        torch.testing.assert_close(output[0, start : start + length].double(), expected, rtol=1e-4, atol=1e-5)
        start, kv_start = start + length, kv_start + past + length


@pytest.mark.parametrize("style", STYLES)
def test_encoder_segments_see_themselves_whole(style):
    query, key, value = torch.randn(3, 1, 2, 9, D, generator=torch.Generator().manual_seed(0))
    pieces = [Piece(0, 4, 0, 4, causal=False), Piece(4, 9, 4, 9, causal=False)]
    plan = AttentionPlan(KernelMaker(1, torch.float32, CPU, style)(pieces))
    output, _ = packed_attention(Layer(), query, key, value, None, scaling=D**-0.5, packed=plan)
    for own in (slice(0, 4), slice(4, 9)):
        scores = (query[0, :, own] @ key[0, :, own].transpose(1, 2) / D**0.5).softmax(-1)
        torch.testing.assert_close(output[0, own], (scores @ value[0, :, own]).transpose(0, 1))


@given(st.integers(1, 3 * BLOCK), st.integers(0, 500))
def test_pieces_cover_a_segment(length, past):
    pieces = pieces_of(10, length, past, 1000)
    assert [p.start for p in pieces] == list(range(10, 10 + length, BLOCK))
    assert [p.stop for p in pieces] == [*(p.start for p in pieces[1:]), 10 + length]
    assert all(p.kv_start == 1000 and p.kv_stop - 1000 - past == p.stop - 10 for p in pieces)


@given(st.integers(2, BLOCK), st.integers(0, 300), st.integers(1, 3))
def test_mask_views(queries, past, groups):
    mask = CausalMask(groups, torch.float32, CPU)
    view = mask.view(queries, past + queries)
    expected = torch.ones(queries, past + queries).tril(past).repeat_interleave(groups, 0)
    assert torch.equal(view == 0, expected.bool())
    assert torch.equal(view == -torch.inf, ~expected.bool())


def test_a_mask_made_by_transformers_is_refused():
    query, key, value = torch.randn(3, 1, 2, 9, D)
    plan = AttentionPlan(KernelMaker(1, torch.float32, CPU)([Piece(0, 9, 0, 9, causal=False)]))
    with pytest.raises(RuntimeError, match="made a mask"):
        packed_attention(Layer(), query, key, value, torch.zeros(1, 1, 9, 9), packed=plan)
