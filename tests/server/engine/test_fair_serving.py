"""Tenants side by side in a real engine: answers as alone, what goes in the middle of a batch, traffic of many."""

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from cdvft_server.engine import EngineConfig, Request, RequestRefused

from tests.server.engine.harness import Listener, Served, params, serving
from tests.server.engine.simulated import check_counters
from tests.tiny import random_adapter

PROMPT = [7, 9, 11, 200, 31, 4]


@contextmanager
def in_layer(backbone, name: str, call) -> Iterator[None]:
    """`call()` in the engine's thread as the first batch from now on enters this layer."""
    calls = [call]

    def enter(*_) -> None:
        if calls:
            calls.pop()()

    hook = backbone.model.get_submodule(name).register_forward_pre_hook(enter)
    try:
        yield
    finally:
        hook.remove()
        assert not calls


def test_answers_of_tenants_in_mixed_batches_are_as_alone(llama, decoder):
    adapters = [None, *(random_adapter(llama.info, n) for n in range(3))]
    rng = random.Random(0)
    work = [([rng.randrange(3, 259) for _ in range(rng.randint(2, 30))], adapters[k % 4]) for k in range(16)]
    with serving(llama, max_batch_tokens=48, kv_tokens=300) as served:
        requests = [
            served.request(ids, adapter, sampling=params(6), tenant=f"t{k % 3}", weight=1.0 + k % 3)
            for k, (ids, adapter) in enumerate(work)
        ]
        served.send(requests)
        for (ids, adapter), request in zip(work, requests, strict=True):
            assert request.deliver.reason() == "length"
            decoder.assert_greedy(ids, adapter, request.deliver.tokens, 6)


@pytest.mark.parametrize("layer", [0, 1])
def test_a_small_tenants_request_goes_in_the_middle_of_a_batch(llama, decoder, layer):
    """With other adapters than the batch's; both answers are as alone, the small one's first. The engine says for whom
    it hurries."""
    flood, small = random_adapter(llama.info, 1), random_adapter(llama.info, 2)
    order: list[str] = []
    hurried: list[set[str]] = []

    class Noting(Listener):
        def __call__(self, event) -> None:
            order.append(event.request_id)
            hurried.append(set(served.engine.hurried))
            super().__call__(event)

    with serving(llama) as served:
        served.send([served.request(PROMPT, flood, sampling=params(2), tenant="flood")])[0].wait()
        big = served.request([5] * 150, flood, sampling=params(4), tenant="flood", deliver=Noting())
        late = served.request(PROMPT, small, sampling=params(4), tenant="small", deliver=Noting())
        with in_layer(llama, f"layers.{layer}", lambda: served.send([late])):
            served.send([big])
            assert late.deliver.reason() == "length"
            assert big.deliver.reason() == "length"
        assert (order[0], hurried[0]) == (late.id, {"small"})
        assert hurried[order.index(big.id)] == set()
        served.engine.call(lambda: None).result()  # the last step is over
        assert not served.engine.hurried
        decoder.assert_greedy(PROMPT, small, late.deliver.tokens, 4)
        decoder.assert_greedy([5] * 150, flood, big.deliver.tokens, 4)


def test_a_classification_in_the_middle_of_a_batch(roberta):
    flood, small = (random_adapter(roberta.info, n, "classification") for n in (1, 2))
    with serving(roberta) as served:
        alone = served.score([0, 9, 8, 2], small).logits()
        expected = served.score([0] + [7] * 40 + [2], flood).logits()
        served.send([served.request([0, 5, 2], flood, tenant="flood")])[0].wait()
        big = served.request([0] + [7] * 40 + [2], flood, tenant="flood")
        late = served.request([0, 9, 8, 2], small, tenant="small")
        ended: list[str] = []
        for request in (big, late):
            request.deliver.events = _Noting(ended, request.id)
        with in_layer(roberta, "encoder.layer.1", lambda: served.send([late])):
            served.send([big])
            assert late.deliver.logits() == pytest.approx(alone, abs=1e-5)
            assert big.deliver.logits() == pytest.approx(expected, abs=1e-5)
        assert ended == [late.id, big.id]


class _Noting(list):
    def __init__(self, ended: list[str], name: str) -> None:
        super().__init__()
        self._ended, self._name = ended, name

    def append(self, event) -> None:
        self._ended.append(self._name)
        super().append(event)


def test_what_fails_in_the_middle_of_a_batch_fails_alone(llama, decoder):
    small = random_adapter(llama.info, 2)

    def deliver(event) -> None:
        heard.append(event)
        raise RuntimeError("the client's loop is closed")

    heard: list[object] = []
    with serving(llama) as served:
        served.send([served.request(PROMPT, sampling=params(2), tenant="flood")])[0].wait()
        big = served.request([5] * 90, sampling=params(4), tenant="flood")
        late = served.request(PROMPT, small, sampling=params(4), tenant="small", deliver=deliver)
        with in_layer(llama, "layers.1", lambda: served.engine.submit([late])):
            served.send([big])
            assert big.deliver.reason() == "length"
        decoder.assert_greedy([5] * 90, None, big.deliver.tokens, 4)
        assert len(heard) == 2
        assert served.engine.stats().retried == 0


def test_fifo_knows_no_tenants(llama):
    order: list[str] = []
    with serving(llama, scheduling="fifo", max_batch_tokens=8, start=False) as served:
        requests = [served.request(PROMPT, sampling=params(1), tenant="many" if k < 6 else "one") for k in range(7)]
        for request in requests:
            request.deliver.events = _Noting(order, request.id)
        for request in requests:
            served.send([request])
        served.engine.start()
        for request in requests:
            request.deliver.wait()
    assert list(dict.fromkeys(order)) == [request.id for request in requests]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tenant": ""}, "the tenant must be a name, it is ''"),
        ({"weight": 0.0}, "weight must be a finite number above 0, it is 0.0"),
        ({"weight": float("inf")}, "weight must be a finite number above 0, it is inf"),
        ({"weight": True}, "weight must be a finite number above 0, it is True"),
    ],
)
def test_a_tenant_and_its_weight_are_checked(llama, fields, message):
    with serving(llama, start=False) as served, pytest.raises(RequestRefused, match=message) as refused:
        served.engine.submit([Request("r", PROMPT, lambda _: None, sampling=params(1), **fields)])
    assert refused.value.param == next(iter(fields))


def test_unknown_scheduling_is_refused():
    with pytest.raises(ValueError, match="scheduling must be one of fair, fifo, it is 'lifo'"):
        EngineConfig(scheduling="lifo")  # type: ignore[arg-type]


def zipf(served: Served, seconds: float, least: int) -> None:
    """Mixed traffic of 200 tenants for so long, and for so many requests; bounds are checked between steps."""
    rng, names = random.Random(0), [f"t{k}" for k in range(200)]
    weights = [1 / (k + 1) for k in range(200)]
    adapters = [random_adapter(served.engine.backbone.info, n) for n in range(8)]
    live: list[Request] = []
    sent, end = 0, time.monotonic() + seconds
    while sent < least or time.monotonic() < end:
        while len(live) < 200:
            ids = [rng.randrange(3, 259) for _ in range(rng.randint(1, 40))]
            live.append(
                served.request(
                    ids,
                    rng.choice([None, *adapters]),
                    sampling=params(rng.randint(1, 20)),
                    tenant=rng.choices(names, weights)[0],
                )
            )
            served.send(live[-1:])
            sent += 1
            if rng.random() < 0.05:
                served.engine.cancel(live[-1].id)
        live[0].deliver.wait()  # the oldest: nobody is left behind
        live = [request for request in live if not request.deliver.events or _lives(request)]
        served.engine.call(lambda: check_counters(served.engine._scheduler, 0)).result()
    for request in live:
        request.deliver.wait()
    stats = served.engine.stats()
    assert (stats.finished, stats.failed) == (sent, 0)


def _lives(request: Request) -> bool:
    return not request.deliver._ended.is_set()


def test_zipf_traffic_of_many_tenants_breaks_no_bound(llama):
    with serving(llama, max_batch_tokens=128, kv_tokens=1000, max_queue=300) as served:
        zipf(served, seconds=0, least=150)


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_ten_minutes_of_zipf_traffic_break_no_bound(llama):
    with serving(llama, max_batch_tokens=128, kv_tokens=1000, max_queue=300) as served:
        zipf(served, seconds=600, least=400)
