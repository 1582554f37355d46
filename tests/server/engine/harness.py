"""What the engine's tests share: a listener that collects events, requests in one line, a served base with its pool."""

import itertools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

from cdvft.adapter import Adapter
from cdvft.backbone import Backbone
from cdvft.prepared import PreparedAdapter, prepare_adapter
from cdvft_server.engine import (
    AdapterPool,
    Engine,
    EngineConfig,
    Event,
    Failed,
    Finished,
    Lease,
    Request,
    SamplingParams,
    Scores,
    Token,
)
from cdvft_server.engine.capture import Recorder
from torch import Tensor

WAIT = 60.0  # seconds: a bound for a hang, not a pace
_numbers = itertools.count()


class Listener:
    """Collects one request's events; complains about anything after the terminal one."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._ended = threading.Event()
        self._grown = threading.Condition()

    def __call__(self, event: Event) -> None:
        with self._grown:
            self.events.append(event)
            self._grown.notify_all()
        if not isinstance(event, Token):
            self._ended.set()

    def wait(self) -> Event:
        """The terminal event, after checking that it is the only one and the last."""
        assert self._ended.wait(WAIT), f"no terminal event after {self.events}"
        terminal = [event for event in self.events if not isinstance(event, Token)]
        assert terminal == self.events[-1:], self.events
        assert [e.position for e in self.events if isinstance(e, Token)] == list(range(len(self.events) - 1))
        return terminal[0]

    def wait_for_tokens(self, count: int) -> None:
        with self._grown:
            assert self._grown.wait_for(lambda: len(self.events) >= count, WAIT)

    @property
    def tokens(self) -> list[int]:
        return [event.token for event in self.events if isinstance(event, Token)]

    def logits(self) -> list[float]:
        event = self.wait()
        assert isinstance(event, Scores), event
        return event.logits

    def reason(self) -> str:
        event = self.wait()
        assert isinstance(event, Finished), event
        return event.reason

    def error(self) -> Exception:
        event = self.wait()
        assert isinstance(event, Failed), event
        return event.error


def in_threads(work: Callable[[int], None], count: int = 4) -> None:
    """`work(0)`, `work(1)`, ... at once, each in a thread of its own; raises what the first that failed raised."""
    with ThreadPoolExecutor(count) as pool:
        for done in [pool.submit(work, seed) for seed in range(count)]:
            done.result()


def params(max_tokens: int = 8, **changes: object) -> SamplingParams:
    """Greedy and deaf to EOS unless told otherwise."""
    fields = {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "seed": 0, "ignore_eos": True} | changes
    return SamplingParams(max_tokens=max_tokens, **fields)


@dataclass
class Served:
    """A running engine with its pool; adapters are placed on first use."""

    engine: Engine
    pool: AdapterPool

    def lease(self, adapter: Adapter | PreparedAdapter | None) -> Lease | None:
        if adapter is None:
            return None
        prepared = adapter if isinstance(adapter, PreparedAdapter) else None
        return self.pool.acquire(adapter.digest) or self.pool.place(prepared or prepare_adapter(adapter))

    def generate(self, prompt: list[int], adapter: Adapter | PreparedAdapter | None = None, **sampling) -> Listener:
        return self.submit([(prompt, adapter)], **sampling)[0]

    def submit(self, work: list[tuple[list[int], Adapter | None]], **sampling) -> list[Listener]:
        """One `Engine.submit` for all of them."""
        return self.send([self.request(prompt, adapter, sampling=params(**sampling)) for prompt, adapter in work])

    def score(self, ids: list[int], adapter: Adapter | PreparedAdapter, type_ids: list[int] | None = None) -> Listener:
        return self.send([self.request(ids, adapter, type_ids=type_ids)])[0]

    def send(self, requests: list[Request]) -> list[Listener]:
        self.engine.submit(requests)
        return [request.deliver for request in requests]

    def request(self, ids: list[int], adapter: Adapter | PreparedAdapter | None = None, **fields) -> Request:
        """With a fresh id, a Listener, and a lease if there is an adapter."""
        fields = {"id": f"r{next(_numbers)}", "deliver": Listener(), "lease": self.lease(adapter)} | fields
        return Request(ids=ids, **fields)

    def assert_nothing_left(self) -> None:
        """No span, no row, no lease, no request."""
        stats = self.engine.stats()
        assert (stats.waiting, stats.running, stats.kv_tokens_used) == (0, 0, 0), stats
        assert self.pool.stats().leased == 0


@contextmanager
def serving(
    backbone: Backbone,
    *,
    budget: int = 1 << 24,
    start: bool = True,
    recorder: Recorder | None = None,
    **config: int | None,
) -> Iterator[Served]:
    """An engine that is proven, started, stopped, and checked for leaks."""
    pool = AdapterPool(backbone.device, budget)
    served = Served(Engine(backbone, pool, EngineConfig(**config), recorder), pool)
    if start:
        served.engine.start()
    try:
        yield served
    finally:
        served.engine.stop()
    served.assert_nothing_left()


@contextmanager
def before_forward(backbone: Backbone, action: Callable[[Tensor], None]) -> Iterator[None]:
    """Call `action(ids)` as each forward pass begins, in its thread."""
    embedding = backbone.model.get_input_embeddings()
    handle = embedding.register_forward_pre_hook(lambda module, inputs: action(inputs[0]))
    try:
        yield
    finally:
        handle.remove()
