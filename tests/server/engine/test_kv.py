from itertools import pairwise

import pytest
from cdvft_server.engine.kv import Span, SpanAllocator
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

SIZE = 64


class Allocations(RuleBasedStateMachine):
    """Any order of reserving and freeing, against a map of who owns which token."""

    def __init__(self) -> None:
        super().__init__()
        self.spans = SpanAllocator(SIZE)
        self.owner: list[Span | None] = [None] * SIZE

    @rule(length=st.integers(1, SIZE))
    def reserve(self, length):
        runs = "".join("." if own is None else "x" for own in self.owner)
        fits = "." * length in runs
        assert self.spans.can_reserve(length) == fits
        if not fits:
            with pytest.raises(ValueError, match="can_reserve"):
                self.spans.reserve(length)
            return
        span = self.spans.reserve(length)
        assert span == Span(runs.index("." * length), length)  # first fit
        self.owner[span.start : span.stop] = [span] * length

    @precondition(lambda self: any(self.owner))
    @rule(data=st.data())
    def free(self, data):
        span = data.draw(st.sampled_from(sorted({own for own in self.owner if own is not None})))
        self.spans.free(span)
        self.owner[span.start : span.stop] = [None] * span.length
        with pytest.raises(ValueError, match="not reserved"):
            self.spans.free(span)

    @invariant()
    def nothing_overlaps_or_leaks(self):
        taken = sum(own is not None for own in self.owner)
        assert self.spans.used == taken
        free = self.spans.free_spans
        assert sum(span.length for span in free) == SIZE - taken
        assert all(self.owner[token] is None for span in free for token in range(span.start, span.stop))
        assert all(a.stop < b.start for a, b in pairwise(free))  # sorted and coalesced


TestAllocations = Allocations.TestCase


def test_a_span_has_at_least_one_token():
    with pytest.raises(ValueError, match="at least one"):
        SpanAllocator(4).reserve(0)


def test_an_empty_arena_reserves_nothing():
    assert not SpanAllocator(0).can_reserve(1)


def test_a_span_below_a_limit_leaves_the_end_free():
    spans = SpanAllocator(SIZE)
    assert spans.reserve(40, below=60) == Span(0, 40)
    assert not spans.can_reserve(21, below=60)
    with pytest.raises(ValueError, match="can_reserve"):
        spans.reserve(21, below=60)
    assert spans.reserve(20, below=60) == Span(40, 20)
    assert not spans.can_reserve(1, below=60)
    assert spans.reserve(4) == Span(60, 4)
