"""The pool against a model of it: leases, rows, bytes, eviction; then from many threads at once."""

import random

import pytest
import torch
from cdvft.heads import HeadSpec
from cdvft.methods.cdvft import Cdvft
from cdvft.prepared import PreparedAdapter
from cdvft_server.engine import AdapterPool, PoolFull
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.server.engine.harness import in_threads

ROW = 12 * 4  # bytes of one row of the first shape
METHOD = Cdvft()
COMMON = torch.arange(50.0).view(5, 10)


def prepared(number: int, shape: int = 0, head: int = 0) -> PreparedAdapter:
    """Adapter `number`: two sites filled with its number; `shape` picks the bank, `head` its floats. The adapters of
    shape 2 have a storage in common, of which each site sees another part."""
    sizes = {"a": 4 * (shape + 1), "b": 8 * (shape + 1)}
    tables = {site: {"t": torch.full((n,), number + 1.0)} for site, n in sizes.items()}
    tensors = {"classifier.weight": torch.full((head,), float(number))} if head else {}
    return PreparedAdapter(
        digest=f"sha256:{number:03}-{shape}-{head}",
        method=METHOD,
        signature=("test", shape),
        tables=tables,
        layouts={"a": None, "b": None},
        head=HeadSpec("linear", "mean", head) if head else None,
        head_tensors=tensors,
        nbytes=sum(sizes.values()) * 4,
        flops=number + 1.0,
        head_nbytes=head * 4,
        shared={"a": {"s": COMMON[:3]}, "b": {"s": COMMON.T}} if shape == 2 else {},
        shared_nbytes=COMMON.nbytes if shape == 2 else 0,
    )


def assert_in_place(pool: AdapterPool, lease, own: PreparedAdapter) -> None:
    """What a batch would read for this lease is this adapter's, and row 0 is the base."""
    (placement,) = pool.placements([lease])
    assert placement.row > 0
    for site, tables in own.tables.items():
        table = placement.bank.tables[site]["t"]
        assert torch.equal(table[placement.row], tables["t"])
        assert not table[0].any()
    if own.shared:
        seen = [placement.bank.shared[site]["s"] for site in ("a", "b")]
        assert all(torch.equal(s, own.shared[site]["s"]) for s, site in zip(seen, "ab", strict=True))
        assert seen[0].untyped_storage().data_ptr() == seen[1].untyped_storage().data_ptr() != COMMON.data_ptr()
    if own.head:
        assert torch.equal(lease.head.tensors["classifier.weight"], own.head_tensors["classifier.weight"])


class Pools(RuleBasedStateMachine):
    """Budgets of 0 to 40 rows, three banks, some heads."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = AdapterPool("cpu", 25 * ROW)
        self.leases: list = []  # (lease, adapter)
        self.discarded: set[str] = set()

    adapters = st.builds(prepared, st.integers(0, 11), st.integers(0, 2), st.sampled_from([0, 0, 3, 40]))

    @rule(own=adapters)
    def place(self, own):
        before = self.pool.stats()
        try:
            lease = self.pool.place(own)
        except PoolFull:
            # true only if the leased adapters, in banks cut to size, leave no room
            leased = {a.digest: a for _, a in self.leases}
            assert own.digest not in leased
            rows: dict = {}
            for a in [*leased.values(), own]:
                rows[a.signature] = rows.get(a.signature, a.nbytes + a.shared_nbytes) + a.nbytes
            heads = sum(a.head_nbytes for a in [*leased.values(), own])
            assert sum(rows.values()) + heads > self.pool.stats().budget_bytes
            return
        self.discarded.discard(own.digest)
        self.leases.append((lease, own))
        assert self.pool.stats().leased >= before.leased

    @rule(own=adapters)
    def acquire(self, own):
        resident = self.pool.is_resident(own.digest)
        lease = self.pool.acquire(own.digest)
        assert (lease is not None) == resident
        if lease is not None:
            self.leases.append((lease, own))

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def release(self, data):
        lease, own = self.leases.pop(data.draw(st.integers(0, len(self.leases) - 1)))
        lease.release()
        lease.release()
        if own.digest in self.discarded and all(a.digest != own.digest for _, a in self.leases):
            assert not self.pool.is_resident(own.digest)

    @rule(own=adapters)
    def discard(self, own):
        self.pool.discard(own.digest)
        self.discarded.add(own.digest)
        assert not self.pool.is_resident(own.digest)
        assert self.pool.acquire(own.digest) is None

    @invariant()
    def every_lease_reads_its_own_adapter(self):
        for lease, own in self.leases:
            assert_in_place(self.pool, lease, own)

    @invariant()
    def nobody_shares_a_row(self):
        placements = self.pool.placements([lease for lease, _ in self.leases])
        rows = {(p.bank.number, p.row) for p in placements}
        assert len(rows) == len({own.digest for _, own in self.leases}) == self.pool.stats().leased

    @invariant()
    def the_budget_is_kept(self):
        stats = self.pool.stats()
        assert stats.bytes_used <= stats.budget_bytes
        books = self.pool._books
        banks = {bank: [r for r in books.residents.values() if r.bank is bank] for bank in books.banks.values()}
        for bank, residents in banks.items():
            assert bank.occupied == len(residents)
            assert sorted([0, *bank.free, *(r.row for r in residents)]) == list(range(bank.capacity))
            assert all(len(own["t"]) == bank.capacity for own in bank.view.tables.values())
            tables = sum(own["t"].nbytes for own in bank.view.tables.values())
            assert bank.nbytes == tables + (COMMON.nbytes if bank.view.shared and bank.capacity else 0)
            assert set(books.idle[bank]) == {r.digest for r in residents if not (r.leases or r.pinned)}
            assert not any(r.doomed and r.leases == 0 for r in residents)
        assert books.head_bytes == sum(r.head_bytes for r in books.residents.values())


TestPools = Pools.TestCase
TestPools.settings = settings(max_examples=150, stateful_step_count=60)


def fill(pool, count):
    for number in range(count):
        pool.place(prepared(number)).release()


def test_the_pool_grows_until_the_budget_then_evicts_the_least_recently_used():
    pool = AdapterPool("cpu", 11 * ROW)  # row 0 and ten adapters
    fill(pool, 10)
    assert pool.stats().evicted == 0
    pool.acquire(prepared(0).digest).release()  # 0 is fresh again, 1 is the oldest
    pool.place(prepared(10)).release()
    assert pool.stats().evicted == 1
    assert not pool.is_resident(prepared(1).digest)
    assert pool.is_resident(prepared(0).digest)


def test_a_leased_adapter_is_never_evicted():
    pool = AdapterPool("cpu", 5 * ROW)
    held = [pool.place(prepared(n)) for n in range(4)]
    with pytest.raises(PoolFull, match=r"of 48 bytes.* has 240 bytes"):
        pool.place(prepared(4))
    held[2].release()
    assert_in_place(pool, pool.place(prepared(4)), prepared(4))
    assert [pool.is_resident(prepared(n).digest) for n in range(5)] == [True, True, False, True, True]


def test_an_adapter_larger_than_the_budget_is_refused_and_leaves_no_bank():
    pool = AdapterPool("cpu", ROW)
    with pytest.raises(PoolFull):
        pool.place(prepared(0))
    assert (pool.stats().banks, pool.stats().bytes_used) == (0, 0)


def test_bytes_flow_from_a_large_bank_to_a_new_one():
    pool = AdapterPool("cpu", 40 * ROW)
    fill(pool, 39)
    for number in range(6):
        pool.place(prepared(number, shape=1)).release()
    stats = pool.stats()
    assert stats.banks == 2
    assert stats.bytes_used <= stats.budget_bytes
    assert all(pool.is_resident(prepared(n, shape=1).digest) for n in range(6))
    assert sum(pool.is_resident(prepared(n).digest) for n in range(39)) >= 20


def test_a_batch_reads_its_rows_while_the_bank_is_cut_and_refilled():
    """A snapshot of placements stays good whatever is placed, moved or grown after it, as long as leases are held."""
    pool = AdapterPool("cpu", 24 * ROW)
    fill(pool, 22)
    own = prepared(21)
    lease = pool.acquire(own.digest)  # sits in a high row
    (before,) = pool.placements([lease])
    for number in range(5):
        pool.place(prepared(number, shape=2)).release()
    (after,) = pool.placements([lease])
    assert after.row < before.row  # it moved
    for placement in (before, after):
        assert torch.equal(placement.bank.tables["a"]["t"][placement.row], own.tables["a"]["t"])


def test_a_discarded_adapter_lives_until_its_last_lease_and_can_come_back():
    pool = AdapterPool("cpu", 10 * ROW)
    first, second = pool.place(prepared(1)), pool.acquire(prepared(1).digest)
    pool.discard(prepared(1).digest)
    assert pool.acquire(prepared(1).digest) is None
    assert_in_place(pool, first, prepared(1))
    first.release()
    assert_in_place(pool, second, prepared(1))
    other = pool.place(prepared(2))
    pool.discard(prepared(2).digest)
    other.release()
    assert pool.stats().adapters == 1
    again = pool.place(prepared(1))  # uploaded again meanwhile
    assert pool.is_resident(prepared(1).digest)
    second.release()
    again.release()
    assert pool.is_resident(prepared(1).digest)
    pool.discard(prepared(1).digest)
    assert pool.stats().adapters == 0


def test_a_failed_copy_gives_the_row_back():
    pool = AdapterPool("cpu", 10 * ROW)
    pool.place(prepared(0)).release()
    own = prepared(1)
    with pytest.raises(KeyError):
        pool.place(PreparedAdapter(**{**vars(own), "tables": {"a": own.tables["a"]}}))
    assert not pool.is_resident(own.digest)
    held = [pool.place(prepared(n)) for n in range(9)]  # all rows are there
    assert len(held) == pool.stats().leased == 9
    assert pool.stats().evicted == 0


def test_threads_place_discard_and_read_at_once():
    pool = AdapterPool("cpu", 14 * ROW)

    def work(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(400):
            own = prepared(rng.randrange(10), rng.randrange(3), rng.choice([0, 5]))
            try:
                lease = pool.acquire(own.digest) or pool.place(own)
            except PoolFull:
                continue
            for _ in range(3):
                assert_in_place(pool, lease, own)
            if rng.random() < 0.2:
                pool.discard(own.digest)
            lease.release()

    in_threads(work)
    stats = pool.stats()
    assert stats.leased == 0
    assert stats.bytes_used <= stats.budget_bytes
