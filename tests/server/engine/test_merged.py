"""Merged weights: mixed into batches exactly, kept under their budget, used where they pay."""

import random

import pytest
import torch
from cdvft.backbone import load_backbone
from cdvft.linear import AdapterContext, adapt
from cdvft.methods.lora import Lora
from cdvft.site import Site
from cdvft_server.engine import CostModel, MergedPool, MergedUse, MergedWeights, PoolFull, RequestRefused, merge_adapter
from cdvft_server.engine.costs import FEW, MANY, Line, fit_costs
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.server.engine.harness import params, serving
from tests.tiny import random_adapter

TOKENS = 10
BUDGET = 1 << 24


def uses(pool, weights, prompt=True, decode_from=1.0):
    return MergedUse(pool.acquire(weights.digest) or pool.place(weights), prompt, decode_from)


@pytest.mark.parametrize("budget", [2048, 19])
def test_merged_unmerged_and_base_rows_share_a_batch(llama, decoder, budget):
    """Prompts and decode steps merged, either of them, neither; adapters with some sites only; in chunks."""
    rng = random.Random(3)
    adapters = [random_adapter(llama.info, seed) for seed in range(3)]
    adapters.append(random_adapter(llama.info, 9, targets=["v_proj"]))
    pool = MergedPool(BUDGET)
    with serving(llama, max_batch_tokens=budget) as served:
        merged = [merge_adapter(llama, adapter) for adapter in adapters]
        work = []
        for k in range(24):
            which = k % 5
            prompt = [rng.randrange(5, 90) for _ in range(rng.randint(1, 30))]
            adapter = adapters[which] if which < 4 else None
            kinds = [None, (True, 1.0), (True, float("inf")), (False, 1.0), (True, 3.0)]
            kind = None if adapter is None else kinds[rng.randrange(5)]
            use = None if kind is None else uses(pool, merged[which], *kind)
            work.append((prompt, adapter, served.request(prompt, adapter, sampling=params(TOKENS), merged=use)))
        listeners = served.send([request for _, _, request in work])
        for (prompt, adapter, _), listener in zip(work, listeners, strict=True):
            listener.wait()
            decoder.assert_greedy(prompt, adapter, listener.tokens, TOKENS)
        stats = served.engine.stats()
    assert stats.merged > 0
    assert stats.unmerged > 0
    assert pool.stats().adapters == 4
    assert not any(entry.leases for entry in pool._entries.values())  # every request gave its own back


def test_classifiers_merged_and_unmerged_equal_a_padded_batch(roberta, encoders):
    rng = random.Random(4)
    adapters = [random_adapter(roberta.info, seed, "classification", ["a", "b", "c"]) for seed in range(3)]
    rows = [[rng.randrange(5, 90) for _ in range(rng.randint(1, 40))] for _ in range(18)]
    pool = MergedPool(BUDGET)
    with serving(roberta) as served:
        merged = [merge_adapter(roberta, adapter) for adapter in adapters]
        requests = [
            served.request(row, adapters[k % 3], merged=uses(pool, merged[k % 3]) if k % 2 else None)
            for k, row in enumerate(rows)
        ]
        found = [listener.logits() for listener in served.send(requests)]
        assert served.engine.stats().merged == sum(len(row) for k, row in enumerate(rows) if k % 2)
    for k, adapter in enumerate(adapters):
        expected = encoders["roberta"].logits(rows[k::3], adapter)
        torch.testing.assert_close(torch.tensor(found[k::3]), torch.tensor(expected), rtol=1e-4, atol=1e-4)


def test_bfloat16_merged_is_near_unmerged(folders):
    """A merge rounds W + dW to bfloat16, unmerged dW x is added in float32 and rounded: 2% of the scores."""
    backbone = load_backbone(str(folders["roberta"]), dtype="bfloat16")
    adapter = random_adapter(backbone.info, 1, "classification")
    rng = random.Random(5)
    rows = [[rng.randrange(5, 90) for _ in range(20)] for _ in range(10)]
    pool = MergedPool(BUDGET)
    with serving(backbone) as served:
        weights = merge_adapter(backbone, adapter)
        assert {weight.dtype for weight in weights.weights.values()} == {torch.bfloat16}
        fft = torch.tensor([own.logits() for own in served.send([served.request(row, adapter) for row in rows])])
        whole = [served.request(row, adapter, merged=uses(pool, weights)) for row in rows]
        merged = torch.tensor([own.logits() for own in served.send(whole)])
    assert 0 < float((fft - merged).norm() / fft.norm()) < 0.02


def test_a_culprit_in_a_merged_batch_fails_alone(roberta, monkeypatch):
    good, bad = (random_adapter(roberta.info, seed, "classification") for seed in (1, 2))
    pool = MergedPool(BUDGET)
    with serving(roberta) as served:
        weights, broken = merge_adapter(roberta, good), merge_adapter(roberta, bad)
        broken = MergedWeights(bad.digest, {name: torch.full_like(w, torch.nan) for name, w in broken.weights.items()})
        requests = [
            served.request([5, 6, 7], own, merged=uses(pool, w)) for own, w in [(good, weights), (bad, broken)] * 3
        ]
        listeners = served.send(requests)
        alone = served.score([5, 6, 7], good).logits()
        for listener in listeners[::2]:
            assert listener.logits() == pytest.approx(alone, abs=1e-5)
        for listener in listeners[1::2]:
            assert "not finite" in str(listener.error())


def test_merged_weights_of_another_adapter_are_refused(roberta):
    one, other = (random_adapter(roberta.info, seed, "classification") for seed in (1, 2))
    pool = MergedPool(BUDGET)
    with serving(roberta) as served:
        request = served.request([5, 6], one, merged=uses(pool, merge_adapter(roberta, other)))
        with pytest.raises(RequestRefused, match="not those of the request's adapter"):
            served.engine.submit([request])
        request.release()


def test_room_is_checked_without_anybody_leaving():
    pool = MergedPool(100)
    pool.place(MergedWeights("a", {"site": torch.zeros(60, dtype=torch.int8)})).release()
    pool.check_room(100)
    with pytest.raises(PoolFull):
        pool.check_room(50, unused_for=3600)
    with pytest.raises(PoolFull):
        pool.place(MergedWeights("b", {"site": torch.zeros(50, dtype=torch.int8)}), unused_for=3600)
    assert pool.stats().adapters == 1
    pool.place(MergedWeights("b", {"site": torch.zeros(50, dtype=torch.int8)})).release()
    assert (pool.stats().adapters, pool.stats().evicted) == (1, 1)


def test_what_cannot_be_measured_is_left_out(llama, monkeypatch):
    adapt(llama.model, llama.info.sites, AdapterContext())
    monkeypatch.setattr(Lora, "flops", lambda *_: 1 // 0)
    costs = fit_costs(llama)
    assert "lora" not in costs.flop
    assert "cdvft" in costs.flop


class Budgeted(RuleBasedStateMachine):
    """MergedPool against a list of what must be there."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = MergedPool(100)
        self.order: list[str] = []  # least recently used first
        self.sizes: dict[str, int] = {}
        self.leases: list = []

    def weights(self, name: str, size: int) -> MergedWeights:
        return MergedWeights(name, {"site": torch.zeros(size, dtype=torch.int8)})

    def leased(self, name: str) -> bool:
        return any(lease.weights.digest == name for lease in self.leases)

    @rule(name=st.sampled_from("abcdef"), size=st.integers(1, 60))
    def place(self, name: str, size: int) -> None:
        if name in self.order:
            self.leases.append(self.pool.place(self.weights(name, size)))
            return
        idle = [own for own in self.order if not self.leased(own)]
        room = 100 - sum(self.sizes[own] for own in self.order)
        gone = []
        while room < size and idle:
            gone.append(idle.pop(0))
            room += self.sizes[gone[-1]]
        if room < size:
            with pytest.raises(PoolFull):
                self.pool.place(self.weights(name, size))
            return
        self.leases.append(self.pool.place(self.weights(name, size)))
        self.order = [own for own in self.order if own not in gone] + [name]
        self.sizes[name] = size

    @rule(name=st.sampled_from("abcdef"))
    def acquire(self, name: str) -> None:
        lease = self.pool.acquire(name)
        assert (lease is not None) == (name in self.order)
        if lease is not None:
            self.order.remove(name)
            self.order.append(name)
            self.leases.append(lease)

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def release(self, data) -> None:
        lease = self.leases.pop(data.draw(st.integers(0, len(self.leases) - 1)))
        lease.release()
        lease.release()

    @invariant()
    def bytes_are_those_of_what_is_there(self) -> None:
        stats = self.pool.stats()
        assert stats.adapters == len(self.order)
        assert stats.bytes_used == sum(self.sizes[name] for name in self.order) <= stats.budget_bytes


TestBudget = Budgeted.TestCase
TestBudget.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)


def test_discarded_weights_go_with_their_last_lease():
    pool = MergedPool(100)
    lease = pool.place(MergedWeights("a", {"site": torch.zeros(40, dtype=torch.int8)}))
    again = pool.again(lease)
    pool.discard("a")
    assert pool.acquire("a") is None
    lease.release()
    assert pool.stats().bytes_used == 40
    again.release()
    assert pool.stats().bytes_used == 0


def test_merging_pays_where_the_lines_cross():
    site = Site("layer", 8, 8)
    model = CostModel({(8, 8): Line(100.0, 3.0)}, {(8, 8): 2.0}, {"cdvft": 0.5})
    # merged: 100 + 3 n, of which 2 n are saved in the base's product; unmerged: 0.5 * 12 * n
    assert model.least_tokens("cdvft", 12.0, [site]) == pytest.approx(100 / (6 - 1))
    assert model.least_tokens("cdvft", 2.0, [site]) == float("inf")
    assert model.least_tokens("lora", 12.0, [site]) == float("inf")  # not measured
    assert model.least_tokens("cdvft", 12.0, [Site("other", 9, 8)]) == float("inf")
    assert Line.through(10.0, 10.0 + 2 * (MANY - FEW)) == Line(0.0, 2.0)


def test_the_fit_covers_every_method_and_shape(llama, roberta):
    for backbone in (llama, roberta):
        adapt(backbone.model, backbone.info.sites, AdapterContext())
        costs = fit_costs(backbone)
        assert costs.flop.keys() >= {"cdvft", "lora", "vera"}
        assert all(seconds > 0 for seconds in costs.flop.values())
        adapter = random_adapter(backbone.info, 1)
        least = costs.least_tokens("cdvft", 1e9, adapter.spec.sites)  # so costly that merging pays
        assert 0 <= least < 1e4
