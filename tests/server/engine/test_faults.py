"""An exception in any stage of one request: it alone fails, the others' answers are right, nothing is left behind."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from cdvft_server.engine import Failed, Finished, Token, sampling
from cdvft_server.engine.batch import Batch, Segment

from tests.server.engine.harness import Listener, Served, params, serving
from tests.tiny import random_adapter

PROMPT, LONG = [5, 6, 7, 8], [9] * 30
FATAL = 666  # the victim's seed


class Injected(Exception):
    pass


@contextmanager
def failing_forward(served: Served, fails: Callable[[Segment], bool]) -> Iterator[None]:
    """Every forward pass that holds such a segment raises."""
    runner = served.engine._core.runner
    run = runner.run

    def injected(batch: Batch, *more: Any) -> Any:
        if any(fails(segment) for segment in batch.segments):
            raise Injected
        return run(batch, *more)

    runner.run = injected  # type: ignore[method-assign]
    try:
        yield
    finally:
        del runner.run


def check_others(served: Served, decoder: Any, own: Any, victim: Any, tokens: int | None) -> None:
    """The victim among four others, of two adapters and the base: it fails after so many tokens, they end well."""
    others = [served.request(PROMPT, adapter, sampling=params(12)) for adapter in (own, None, own, None)]
    served.send([*others[:2], victim, *others[2:]])
    assert isinstance(victim.deliver.error(), Injected)
    assert tokens is None or len(victim.deliver.tokens) == tokens
    for request, adapter in zip(others, (own, None, own, None), strict=True):
        assert request.deliver.reason() == "length"
        decoder.assert_greedy(PROMPT, adapter, request.deliver.tokens, 12)
    stats = served.engine.stats()
    assert (stats.failed, stats.finished) == (1, 4)
    assert served.generate(PROMPT, own, max_tokens=2).reason() == "length"


@pytest.mark.parametrize(
    ("fails", "tokens"),
    [
        (lambda segment: segment.past == 0, 0),
        (lambda segment: 0 < segment.past < len(LONG) and not segment.completes, 0),
        (lambda segment: segment.past == len(LONG), 1),
        (lambda segment: segment.past == len(LONG) + 4, 5),
    ],
    ids=["the first part of the prompt", "a later part", "the first decode", "a later decode"],
)
def test_prefill_and_decode(llama, decoder, fails: Callable[[Segment], bool], tokens: int) -> None:
    own = random_adapter(llama.info, 1)
    with serving(llama, max_batch_tokens=16) as served:
        victim = served.request(LONG, own, sampling=params(20))
        with failing_forward(served, lambda s: s.sequence.request.id == victim.id and fails(s)):
            check_others(served, decoder, own, victim, tokens)
        assert served.engine.stats().retried >= 1


def test_sampling(llama, decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = sampling.draw

    def injected(seed: int, step: int) -> float:
        if seed == FATAL and step == 3:
            raise Injected
        return draw(seed, step)

    monkeypatch.setattr(sampling, "draw", injected)
    own = random_adapter(llama.info, 1)
    with serving(llama) as served:
        victim = served.request(PROMPT, own, sampling=params(20, temperature=1.0, seed=FATAL))
        check_others(served, decoder, own, victim, 3)


def test_delivery(llama, decoder) -> None:
    """A listener that raises ends its request as cancelled; what it raises is nobody else's."""
    seen: list[Any] = []

    def deliver(event: Any) -> None:
        seen.append(event)
        raise Injected

    own = random_adapter(llama.info, 1)
    with serving(llama) as served:
        others = [served.request(PROMPT, adapter, sampling=params(12)) for adapter in (own, None)]
        victim = served.request(PROMPT, own, deliver=deliver, sampling=params(20))
        served.send([others[0], victim, others[1]])
        for request, adapter in zip(others, (own, None), strict=True):
            assert request.deliver.reason() == "length"
            decoder.assert_greedy(PROMPT, adapter, request.deliver.tokens, 12)
    assert [type(event) for event in seen] == [Token, Finished]


def test_a_row_of_an_encoder(roberta) -> None:
    own = random_adapter(roberta.info, 1, "classification")
    with serving(roberta) as served:
        alone = served.score(PROMPT, own).logits()
        rows = [served.request(PROMPT, own) for _ in range(5)]
        with failing_forward(served, lambda segment: segment.sequence.request.id == rows[2].id):
            served.send(rows)
            assert isinstance(rows[2].deliver.error(), Injected)
        for row in (*rows[:2], *rows[3:]):
            assert row.deliver.logits() == pytest.approx(alone, abs=1e-5)


def test_memory_that_the_allocator_refuses(llama, decoder) -> None:
    """A real refusal, in the pass of one request only: the batch is run again in parts, and only it ends."""
    own = random_adapter(llama.info, 1)
    with serving(llama) as served:
        victim = served.request(LONG, own, sampling=params(20))
        run = served.engine._core.runner.run

        def greedy(batch: Batch, *more: Any) -> Any:
            if any(segment.sequence.request.id == victim.id for segment in batch.segments):
                torch.empty(1 << 62, dtype=torch.uint8)
            return run(batch, *more)

        served.engine._core.runner.run = greedy  # type: ignore[method-assign]
        other = served.request(PROMPT, own, sampling=params(12))
        served.send([other, victim])
        listener = victim.deliver
        assert isinstance(listener, Listener)
        assert "DefaultCPUAllocator" in str(listener.error())
        assert isinstance(listener.events[-1], Failed)
        assert other.deliver.reason() == "length"
        decoder.assert_greedy(PROMPT, own, other.deliver.tokens, 12)
