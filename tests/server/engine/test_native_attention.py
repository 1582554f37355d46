"""attention.c against softmax in float64: sizes around its blocks, both dtypes, wild scores, NaN, threads."""

import pytest
import torch
from cdvft_server.engine import native
from cdvft_server.engine.attention import Piece, pieces_of
from cdvft_server.engine.native import NativeCall, library
from hypothesis import given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.skipif(library() is None, reason="attention.c was not compiled: no GCC or Clang at install")


def test_a_library_of_another_version_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "VERSION", native.VERSION + 1)
    assert library.__wrapped__() is None


sides = st.sampled_from([1, 2, 3, 4, 5, 15, 16, 17, 31, 33, 63, 64, 65, 130])
widths = st.sampled_from([1, 8, 16, 24, 32, 48, 64, 80, 128])
UNIT = {torch.float32: 3e-6, torch.bfloat16: 1e-2}


class Case:
    """Segments of one dtype, each causal or not; what lies between their keys is NaN."""

    def __init__(self, segments, shape: tuple[int, int, int], seed: int, dtype=torch.float32) -> None:
        """`shape`: key heads, queries for each, width."""
        heads, groups, d = shape
        random = torch.Generator().manual_seed(seed)
        self.groups, self.pieces, start, kv = groups, [], 0, 3
        for past, length, causal in segments:
            if causal:
                self.pieces += pieces_of(start, length, past, kv)
            else:
                self.pieces.append(Piece(start, start + length, kv, kv + past + length, causal=False))
            start, kv = start + length, kv + past + length + 2
        self.query = torch.randn(heads, start * groups, d, generator=random).to(dtype)
        self.keys, self.values = (torch.full((kv, heads, d), torch.nan, dtype=dtype) for _ in range(2))
        for piece in self.pieces:
            for table in (self.keys, self.values):
                own = table[piece.kv_start : piece.kv_stop]
                own[:] = torch.randn(own.shape, generator=random).to(dtype)

    def run(self, pieces=None, scaling: float | None = None) -> torch.Tensor:
        return NativeCall(pieces or self.pieces, self.groups)(self.query, self.keys, self.values, scaling)

    def exact(self, piece: Piece) -> torch.Tensor:
        """`[heads, rows, d]` in float64."""
        rows = slice(piece.start * self.groups, piece.stop * self.groups)
        query, own = self.query[:, rows].double(), slice(piece.kv_start, piece.kv_stop)
        keys, values = (t[own].double().transpose(0, 1) for t in (self.keys, self.values))
        scores = query @ keys.transpose(1, 2) / query.shape[2] ** 0.5
        if piece.causal:
            last = torch.arange(piece.queries).repeat_interleave(self.groups) + piece.keys - piece.queries
            scores = scores.masked_fill(torch.arange(piece.keys)[None, :] > last[:, None], -torch.inf)
        return scores.softmax(-1) @ values

    def check(self, found: torch.Tensor, size: float = 1.0) -> None:
        """`size` of the scores: their rounding errors are those of the weights."""
        for piece in self.pieces:
            rows = slice(piece.start * self.groups, piece.stop * self.groups)
            near = UNIT[found.dtype] * max(1.0, size)
            torch.testing.assert_close(found[:, rows].double(), self.exact(piece), rtol=near, atol=near)


@given(
    segments=st.lists(st.tuples(st.sampled_from([0, 1, 40, 64, 200]), sides, st.booleans()), min_size=1, max_size=4),
    shape=st.tuples(st.integers(1, 3), st.sampled_from([1, 2, 4, 5]), widths),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=60, deadline=None)
def test_each_query_sees_its_own_keys(segments, shape, dtype, seed) -> None:
    case = Case(segments, shape, seed, dtype)
    case.check(case.run())


@pytest.mark.parametrize("scale", [1e-3, 30.0, 1e4])
def test_scores_of_any_size(scale: float) -> None:
    """Weights that are all alike, and such that only one counts; the greatest score comes in any block."""
    case = Case([(100, 90, True), (300, 1, True), (0, 150, False)], (2, 1, 32), 5)
    case.query *= scale
    case.check(case.run(), 2 * scale)


def test_threads_and_neighbours_change_nothing() -> None:
    case = Case([(10, 70, True), (200, 1, True), (0, 33, False), (0, 5, False), (30, 2, True)], (3, 2, 48), 1)
    together, before = case.run(), torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            assert torch.equal(case.run(), together)
    finally:
        torch.set_num_threads(before)
    for piece in case.pieces:
        rows = slice(piece.start * 2, piece.stop * 2)
        assert torch.equal(case.run([piece])[:, rows], together[:, rows])


def test_nan_reaches_those_that_see_it() -> None:
    """Of a key, and of a value."""
    for name in ("keys", "values"):
        case = Case([(0, 9, False), (0, 70, True), (66, 1, True), (0, 40, False)], (1, 1, 16), 2)
        getattr(case, name)[case.pieces[0].kv_start + 4] = torch.nan
        getattr(case, name)[case.pieces[2].kv_start + 65] = torch.nan
        found = case.run()[0].isnan().any(1)
        assert found.tolist() == [*[True] * 9, *[False] * 70, True, *[False] * 40]


def test_tensors_as_they_lie_and_a_scale() -> None:
    """Views of wider tensors, transposed ones; `scaling` instead of 1 / sqrt(d)."""
    case = Case([(3, 20, True), (5, 1, True)], (2, 1, 32), 4)
    plain = case.run()
    wide = torch.randn(2, case.query.shape[1], 70)
    wide[:, :, 5:37] = case.query
    case.query = wide[:, :, 5:37]
    case.keys = case.keys.transpose(0, 1).contiguous().transpose(0, 1)
    case.values = case.values.transpose(1, 2).contiguous().transpose(1, 2)
    torch.testing.assert_close(case.run(), plain, rtol=1e-6, atol=1e-6)
    half = case.run(scaling=0.5 * 32**-0.5)
    case.query = case.query * 0.5
    torch.testing.assert_close(case.run(), half, rtol=1e-6, atol=1e-6)
