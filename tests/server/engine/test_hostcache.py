"""The host cache against a list: who is kept, in which order, with how many bytes."""

from dataclasses import replace

import torch
from cdvft_server.engine.hostcache import HostCache
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tests.server.engine.harness import in_threads
from tests.server.engine.test_pool import COMMON, ROW, prepared


def bytes_of(kept: list) -> int:
    shared = {own.signature: own.shared_nbytes for own in kept}
    return sum(own.nbytes + own.head_nbytes for own in kept) + sum(shared.values())


class Caches(RuleBasedStateMachine):
    """A budget of some ten rows; adapters of three shapes, one with tables in common, some with heads."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = HostCache(10 * ROW)
        self.model: list = []  # least recently used first
        self.evicted = 0

    adapters = st.builds(prepared, st.integers(0, 6), st.integers(0, 2), st.sampled_from([0, 0, 3, 40, 150]))

    def touched(self, digest: str) -> None:
        self.model.sort(key=lambda own: own.digest == digest)

    @rule(own=adapters)
    def put(self, own):
        self.cache.put(own)
        if own.digest in [other.digest for other in self.model]:
            self.touched(own.digest)
        elif bytes_of([own]) <= 10 * ROW:
            while bytes_of([*self.model, own]) > 10 * ROW:
                self.model.pop(0)
                self.evicted += 1
            self.model.append(own)

    @rule(own=adapters)
    def get(self, own):
        found = self.cache.get(own.digest)
        kept = {other.digest: other for other in self.model}
        assert (found is not None) == (own.digest in kept) == (own.digest in self.cache)
        if found is not None:
            assert found.tables is kept[own.digest].tables
            assert found.head == own.head
            self.touched(own.digest)

    @rule(own=adapters)
    def discard(self, own):
        self.cache.discard(own.digest)
        self.model = [other for other in self.model if other.digest != own.digest]
        assert own.digest not in self.cache

    @invariant()
    def the_bytes_are_those_of_the_model(self):
        stats = self.cache.stats()
        assert (stats.adapters, stats.bytes_used) == (len(self.model), bytes_of(self.model))
        assert stats.bytes_used <= stats.budget_bytes == 10 * ROW
        assert stats.evicted == self.evicted
        assert list(self.cache._kept) == [own.digest for own in self.model]


TestCaches = Caches.TestCase
TestCaches.settings = settings(max_examples=150, stateful_step_count=60)


def test_what_adapters_share_is_kept_once_and_goes_with_the_last():
    cache = HostCache(100 * ROW)
    copies = {site: {"s": table["s"].clone()} for site, table in prepared(1, 2).shared.items()}
    cache.put(prepared(0, 2))
    cache.put(replace(prepared(1, 2), shared=copies))
    second = cache.get(prepared(1, 2).digest)
    assert second.shared["a"]["s"].untyped_storage().data_ptr() == COMMON.untyped_storage().data_ptr()
    cache.discard(prepared(0, 2).digest)
    assert cache.shared_tables(("test", 2)) is second.shared
    cache.discard(prepared(1, 2).digest)
    assert cache.shared_tables(("test", 2)) is None
    assert cache.stats().bytes_used == 0


def test_a_part_of_a_larger_storage_counts_whole():
    cache = HostCache(100 * ROW)
    whole = torch.zeros(100)
    cache.put(replace(prepared(0), tables={"a": {"t": whole[:4]}, "b": {"t": whole[4:12]}}))
    assert cache.stats().bytes_used == whole.nbytes


def test_a_budget_of_nothing_keeps_nothing():
    cache = HostCache(0)
    cache.put(prepared(0))
    assert not cache.is_on
    assert cache.get(prepared(0).digest) is None
    assert cache.stats().adapters == 0


def test_threads_keep_the_books():
    cache = HostCache(6 * ROW)

    def work(seed: int) -> None:
        for step in range(600):
            own = prepared((seed * 7 + step * 5) % 9, step % 3)
            (cache.put if step % 3 else cache.get)(own if step % 3 else own.digest)
            if step % 11 == 0:
                cache.discard(own.digest)
            assert cache.stats().bytes_used <= 6 * ROW

    in_threads(work)
    kept = [own.prepared for own in cache._kept.values()]
    assert cache.stats().bytes_used == bytes_of(kept)
