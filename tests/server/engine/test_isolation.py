"""One bad request hurts nobody else, and every request gets one terminal event."""

import random
import threading
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from cdvft.prepared import prepare_adapter
from cdvft_server.engine import Draining, Finished, PoolFull, QueueFull, RequestRefused, Token
from cdvft_server.engine.sampling import SamplingError
from cdvft_server.engine.scoring import ScoringError

from tests.server.engine.harness import WAIT, Listener, before_forward, params, serving
from tests.tiny import random_adapter

POISON = 200  # a token that makes the forward pass raise
PROMPT = [5, 6, 7, 8]


def poison(ids: torch.Tensor) -> None:
    if (ids == POISON).any():
        raise ZeroDivisionError("poisoned")


class Gate:
    """Holds the engine thread at the start of a forward pass until told to go on."""

    def __init__(self) -> None:
        self.entered, self.opened = threading.Semaphore(0), threading.Semaphore(0)

    def __call__(self, ids: torch.Tensor) -> None:
        self.entered.release()
        assert self.opened.acquire(timeout=WAIT)

    def wait(self) -> None:
        assert self.entered.acquire(timeout=WAIT)

    def open(self, steps: int = 10_000) -> None:
        self.opened.release(steps)


@contextmanager
def gated(backbone, **config):
    """An engine that stops before every forward pass; always opened at the end."""
    gate = Gate()
    with serving(backbone, **config) as served, before_forward(backbone, gate):
        try:
            yield served, gate
        finally:
            gate.open()
            served.engine.stop()


def broken_adapter(backbone, task="lm", seed=90):
    """An adapter that makes every hidden state NaN, or, for a classifier, a head that overflows."""
    prepared = prepare_adapter(random_adapter(backbone.info, seed, task))
    if task == "lm":
        tables = {s: {n: torch.full_like(t, torch.nan) for n, t in own.items()} for s, own in prepared.tables.items()}
        return replace(prepared, tables=tables)
    return replace(prepared, head_tensors={n: torch.full_like(t, 3e38) for n, t in prepared.head_tensors.items()})


def test_a_forward_that_fails_ends_its_own_request_only(llama, decoder):
    adapter = random_adapter(llama.info, 1)
    with serving(llama) as served, before_forward(llama, poison):
        good = served.submit([(PROMPT, None), (PROMPT, adapter)], max_tokens=20)
        bad = served.submit([([POISON, 9], adapter), ([9, 9, POISON], None)], max_tokens=20)
        assert all(isinstance(listener.error(), ZeroDivisionError) for listener in bad)
        for listener, own in zip(good, [None, adapter], strict=True):
            assert listener.reason() == "length"
            decoder.assert_greedy(PROMPT, own, listener.tokens, 20)
        stats = served.engine.stats()
        assert (stats.failed, stats.finished) == (2, 2)
        assert stats.retried >= 1


def test_a_forward_that_fails_amid_encoder_rows(roberta):
    adapter = random_adapter(roberta.info, 1, "classification")
    with serving(roberta) as served:
        alone = served.score(PROMPT, adapter).logits()
        with before_forward(roberta, poison):
            rows = [PROMPT, [3, POISON], PROMPT, [POISON] * 5, PROMPT]
            listeners = served.send([served.request(row, adapter) for row in rows])
            for row, listener in zip(rows, listeners, strict=True):
                if POISON in row:
                    assert isinstance(listener.error(), ZeroDivisionError)
                else:
                    assert listener.logits() == pytest.approx(alone, abs=1e-5)


def test_an_adapter_of_nan_fails_its_own_requests_only(llama, decoder):
    adapter = random_adapter(llama.info, 1)
    with serving(llama, kv_tokens=64) as served:
        for temperature in (0.0, 1.0):
            bad = [served.generate(PROMPT, broken_adapter(llama), temperature=temperature) for _ in range(3)]
            good = [served.generate(PROMPT, own, max_tokens=9) for own in (adapter, None)]
            assert all(isinstance(listener.error(), SamplingError) for listener in bad)
            for listener, own in zip(good, (adapter, None), strict=True):
                listener.wait()
                decoder.assert_greedy(PROMPT, own, listener.tokens, 9)  # also over an arena that held NaN


def test_a_head_that_overflows_fails_its_own_rows_only(roberta):
    good, bad = random_adapter(roberta.info, 1, "classification"), broken_adapter(roberta, "classification")
    with serving(roberta) as served:
        listeners = served.send([served.request(PROMPT, own) for own in (good, bad, good, bad)])
        assert listeners[0].logits() == pytest.approx(
            listeners[2].logits(), abs=1e-5
        )  # other rows of the same products
        assert all(isinstance(listeners[i].error(), ScoringError) for i in (1, 3))


@pytest.mark.parametrize("fails_at", [0, 3, "end"])
def test_a_listener_that_raises_is_cancelled_and_nothing_else(llama, decoder, fails_at):
    seen: list = []

    def deliver(event) -> None:
        seen.append(event)
        if fails_at == "end" and isinstance(event, Finished):
            raise SystemExit
        if isinstance(event, Token) and event.position == fails_at:
            raise RuntimeError("the client's loop is closed")

    with serving(llama) as served:
        bad = served.request(PROMPT, random_adapter(llama.info, 2), deliver=deliver, sampling=params(6))
        good = served.request(PROMPT, sampling=params(12))
        served.send([bad, good])
        assert good.deliver.reason() == "length"
        decoder.assert_greedy(PROMPT, None, good.deliver.tokens, 12)
        assert served.generate(PROMPT, max_tokens=1).reason() == "length"
    assert seen[-1] == Finished(bad.id, "length" if fails_at == "end" else "cancelled")
    assert len(seen) == (7 if fails_at == "end" else fails_at + 2)


def test_cancel_while_waiting_prefilling_and_decoding(llama):
    with gated(llama, max_batch_tokens=8, kv_tokens=64) as (served, gate):
        decoding = served.request(PROMPT, sampling=params(20))
        prefilling = served.request([9] * 30, random_adapter(llama.info, 1), sampling=params(2))
        waiting = served.request(PROMPT, random_adapter(llama.info, 2), sampling=params(40))
        served.send([decoding, prefilling, waiting])
        gate.wait()
        gate.open(1)
        gate.wait()  # the second step runs: one decode token, seven of the long prompt
        assert served.engine.stats().waiting == 1
        for request in (decoding, prefilling, waiting):
            served.engine.cancel(request.id)
            served.engine.cancel(request.id)
        gate.open(1)
        assert [r.deliver.reason() for r in (waiting, prefilling, decoding)] == ["cancelled"] * 3
        assert not prefilling.deliver.tokens
        assert len(decoding.deliver.tokens) == 2
        served.assert_nothing_left()


def test_cancel_of_what_is_unknown_or_over_does_nothing(llama):
    with serving(llama) as served:
        served.engine.cancel("nobody")
        request = served.request(PROMPT, sampling=params(2))
        served.send([request])
        assert request.deliver.reason() == "length"
        served.engine.cancel(request.id)
        assert served.generate(PROMPT, max_tokens=2).reason() == "length"
        assert len(request.deliver.events) == 3


def test_cancel_and_submit_from_within_a_delivery(llama):
    with serving(llama) as served:
        listener, followup = Listener(), Listener()

        def deliver(event) -> None:
            listener(event)
            if event == Token("self", event.token, 2) if isinstance(event, Token) else False:
                served.engine.cancel("self")
                served.engine.submit([served.request(PROMPT, deliver=followup, sampling=params(3))])

        served.send([served.request(PROMPT, id="self", deliver=deliver, sampling=params(50))])
        assert listener.reason() == "cancelled"
        assert len(listener.tokens) == 3
        assert followup.reason() == "length"


def test_cancel_before_the_start(llama):
    with serving(llama, start=False) as served:
        request = served.request(PROMPT, random_adapter(llama.info, 1), sampling=params(2))
        served.send([request])
        served.engine.cancel(request.id)
        served.engine.start()
        assert request.deliver.reason() == "cancelled"


def test_stop_cancels_what_is_left(llama):
    with gated(llama, kv_tokens=64) as (served, gate):
        running = served.generate(PROMPT, random_adapter(llama.info, 1), max_tokens=50)
        waiting = served.generate(PROMPT, random_adapter(llama.info, 2), max_tokens=50)
        gate.wait()
        stopping = threading.Thread(target=served.engine.stop)
        stopping.start()
        gate.open()
        stopping.join(WAIT)
        assert not stopping.is_alive()
        assert [running.reason(), waiting.reason()] == ["cancelled"] * 2
        assert len(running.tokens) <= 2
        served.assert_nothing_left()
        with pytest.raises(Draining):
            served.generate(PROMPT)
        served.engine.stop()


def test_stop_with_time_finishes_what_was_accepted(llama):
    with gated(llama, kv_tokens=64) as (served, gate):
        listeners = [served.generate(PROMPT, max_tokens=50) for _ in range(3)]
        gate.wait()
        stopping = threading.Thread(target=served.engine.stop, args=(WAIT,))
        stopping.start()
        gate.open()
        stopping.join(WAIT)
        assert [listener.reason() for listener in listeners] == ["length"] * 3


def test_stop_without_a_start(llama):
    with serving(llama, start=False) as served:
        listener = served.generate(PROMPT, random_adapter(llama.info, 1))
        served.engine.stop()
        assert listener.reason() == "cancelled"
        with pytest.raises(RuntimeError, match="starts once"):
            served.engine.start()


def test_a_fault_of_the_engine_itself_fails_what_is_in_it_and_serving_goes_on(llama, monkeypatch):
    with serving(llama) as served:
        monkeypatch.setattr(served.pool, "placements", lambda leases: 1 / 0)
        listeners = served.submit([(PROMPT, None), (PROMPT, random_adapter(llama.info, 1))])
        assert all(isinstance(listener.error(), ZeroDivisionError) for listener in listeners)
        monkeypatch.undo()
        assert served.generate(PROMPT).reason() == "length"


def test_a_full_queue_takes_all_or_none(llama):
    adapter = random_adapter(llama.info, 1)
    with gated(llama, max_queue=3, kv_tokens=64) as (served, gate):
        served.generate(PROMPT, max_tokens=60)
        gate.wait()  # it runs; the queue is empty
        served.submit([(PROMPT, None), (PROMPT, adapter)], max_tokens=2)
        requests = [served.request(PROMPT, adapter, sampling=params(2)) for _ in range(2)]
        with pytest.raises(QueueFull, match="2 requests wait, 2 more exceed 3"):
            served.engine.submit(requests)
        assert served.engine.stats().waiting == 2
        served.engine.submit(requests[:1])  # its lease is still its own
        requests[1].lease.release()
        gate.open()
        assert requests[0].deliver.reason() == "length"


def test_thousands_of_mixed_requests_leave_nothing_behind(llama, decoder):
    """Writers, classifiers, faults, cancels and refusals; then the same greedy answer as before."""
    rng = random.Random(0)
    writers = [None, *(random_adapter(llama.info, n, num_factors=2 + n % 2) for n in range(12))]
    readers = [random_adapter(llama.info, 50 + n, "classification") for n in range(4)]
    faulty = broken_adapter(llama)
    listeners, refused = [], 0
    with (
        serving(llama, max_batch_tokens=64, kv_tokens=400, max_queue=10_000, budget=16_000) as served,
        before_forward(llama, poison),
    ):
        first = served.generate(PROMPT, writers[1], max_tokens=8)
        first.wait()
        for _ in range(2000):
            ids = [rng.randrange(3, 259) for _ in range(rng.randint(1, 20))]
            kind = rng.random()
            adapter = faulty if kind < 0.02 else rng.choice(readers if kind < 0.3 else writers)
            writes = kind < 0.02 or kind >= 0.3
            sampling = params(rng.randint(1, 6), temperature=rng.choice([0.0, 1.0])) if writes else None
            try:
                request = served.request(ids, adapter, sampling=sampling)
            except PoolFull:  # every row is in use: wait for the oldest requests, as a server would say "try later"
                for listener in listeners:
                    listener.wait()
                refused += 1
                continue
            listeners += served.send([request])
            if rng.random() < 0.1:
                served.engine.cancel(request.id)
        events = [type(listener.wait()).__name__ for listener in listeners]
        last = served.generate(PROMPT, writers[1], max_tokens=8)
        last.wait()
        assert last.tokens == first.tokens
        assert {"Finished", "Failed", "Scores"} == set(events)
        assert served.engine.stats().finished + served.engine.stats().failed == len(listeners) + 2
        assert refused > 0
        assert served.pool.stats().evicted > 0


@pytest.mark.parametrize("round", range(3))
def test_submitting_cancelling_and_stopping_from_many_threads(llama, round):
    """Whatever the moment, every accepted request ends once."""
    accepted, refused = [], []
    with serving(llama, max_batch_tokens=32) as served:
        adapter = prepare_adapter(random_adapter(llama.info, 1))
        started = threading.Barrier(5)

        def client(seed: int) -> None:
            rng = random.Random(seed * 10 + round)
            started.wait()
            for _ in range(60):
                request = served.request(PROMPT, adapter if seed % 2 else None, sampling=params(rng.randint(1, 30)))
                try:
                    served.send([request])
                except Draining:
                    if request.lease is not None:
                        request.lease.release()
                    refused.append(request)
                    return
                accepted.append(request)
                if rng.random() < 0.5:
                    served.engine.cancel(request.id)
                if rng.random() < 0.3:
                    request.deliver.wait()

        threads = [threading.Thread(target=client, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        started.wait()
        while len(accepted) < 40:
            accepted[-1].deliver.wait() if accepted else None
        served.engine.stop(0.05 * round)
        for thread in threads:
            thread.join()
        for request in accepted:
            assert request.deliver.reason() in ("length", "cancelled")


def test_refused_requests_keep_their_leases(llama):
    with serving(llama) as served:
        request = served.request(PROMPT, random_adapter(llama.info, 1), sampling=params(10_000))
        with pytest.raises(RequestRefused):
            served.engine.submit([request])
        assert not request.lease.released
        request.lease.release()
