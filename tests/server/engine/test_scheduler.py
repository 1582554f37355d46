"""What goes into a batch, without any model: budgets, order, no starvation."""

from cdvft.methods.cdvft import Cdvft
from cdvft_server.engine.bank import BankView, Placement
from cdvft_server.engine.batch import Batch, Request, Sequence
from cdvft_server.engine.kv import SpanAllocator
from cdvft_server.engine.scheduler import Scheduler
from hypothesis import given
from hypothesis import strategies as st

from tests.server.engine.harness import params


def sequence(prompt: int, max_tokens: int = 0) -> Sequence:
    sampling = params(max_tokens) if max_tokens else None
    return Sequence(Request("r", list(range(prompt)), lambda event: None, sampling=sampling))


def advance(scheduler: Scheduler) -> list[tuple[Sequence, int]]:
    """One step as the engine takes it: each completed sequence grows by a token, or ends."""
    shares = scheduler.schedule()
    for own, length in shares:
        own.computed += length
        if own.remaining:
            continue
        limit = own.request.sampling.max_tokens if own.request.sampling else 0
        if own.generated < limit:
            own.tokens.append(0)
        if own.generated == limit:
            own.ended = True
            scheduler.remove(own)
    return shares


work = st.lists(st.tuples(st.integers(1, 40), st.integers(0, 12)), min_size=1, max_size=25)


@given(work, st.integers(1, 50), st.integers(52, 200))
def test_decoders_keep_the_budget_and_arrival_order_and_end(jobs, budget, arena):
    kv = SpanAllocator(arena)
    scheduler = Scheduler(kv, budget)
    sequences = [sequence(*job) for job in jobs]
    for own in sequences:
        scheduler.add(own)
    admitted = []
    while scheduler.has_work:
        before = {id(s) for s in scheduler.running}
        decoding = [s for s in scheduler.running if s.remaining == 1]
        shares = advance(scheduler)
        assert 0 < sum(length for _, length in shares) <= budget
        assert all(length > 0 for _, length in shares)
        assert set(map(id, decoding)) <= {id(s) for s, _ in shares}  # no decode step waits for a prompt
        admitted += [s for s, _ in shares if id(s) not in before]
    assert admitted == sequences
    assert all(s.ended for s in sequences)
    assert kv.used == 0


@given(st.lists(st.integers(1, 40), min_size=1, max_size=40), st.integers(1, 50))
def test_encoder_segments_are_whole(lengths, budget):
    scheduler = Scheduler(None, budget)
    for length in lengths:
        scheduler.add(sequence(length))
    seen = []
    while scheduler.has_work:
        shares = advance(scheduler)
        assert all(length == len(own.tokens) for own, length in shares)
        assert len(shares) == 1 or sum(length for _, length in shares) <= budget
        seen += [length for _, length in shares]
    assert seen == lengths


def test_the_head_of_the_queue_is_not_overtaken():
    scheduler = Scheduler(SpanAllocator(20), 100)
    first, large, small = sequence(4, 8), sequence(10, 4), sequence(1, 1)
    for own in (first, large, small):
        scheduler.add(own)
    assert [own for own, _ in advance(scheduler)] == [first]  # large does not fit yet, and small stays behind it
    while first in scheduler.running:
        advance(scheduler)
    assert [own for own, _ in advance(scheduler)] == [large, small]


def test_decode_steps_share_a_batch_with_a_prompt():
    scheduler = Scheduler(SpanAllocator(1000), 16)
    writer, reader = sequence(3, 50), sequence(100, 5)
    scheduler.add(writer)
    advance(scheduler)
    scheduler.add(reader)
    assert scheduler.schedule() == [(writer, 1), (reader, 15)]


def test_a_batch_is_ordered_by_bank_and_row():
    one, two = (BankView(number, Cdvft(), {}, {}) for number in (1, 2))
    where = [(two, 3), None, (one, 2), (two, 1), (one, 2), None, (two, 3)]
    places = [None if at is None else Placement(*at) for at in where]
    batch = Batch.pack([(sequence(i + 1), i + 1, place) for i, place in enumerate(places)])
    assert [s.length for s in batch.segments] == [2, 6, 3, 5, 4, 1, 7]
    assert [s.start for s in batch.segments] == [0, 2, 8, 11, 16, 20, 21]
    assert [(s.start, s.stop, s.runs) for s in batch.slices] == [(8, 16, [(2, 8)]), (16, 28, [(1, 4), (3, 8)])]
    assert batch.num_tokens == 28
