"""How long requests wait and run, and what a forward pass takes: written by the engine's thread alone, no locks."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING

from cdvft_server.engine.histogram import SECONDS, SIZES, STEPS, Histogram

if TYPE_CHECKING:
    from cdvft_server.engine.batch import Batch, Sequence

__all__ = ["Meters", "Times"]


@dataclass(slots=True)
class Times:
    """One request's way; moments are `perf_counter` seconds. Other threads may read it at any time.

    `seconds` is its share of the steps it was in: a step's time by tokens, so that the shares of all requests sum to
    the time that the engine worked. `prefilled`: prompt tokens that went through the model. Neither changes any more
    once it is `settled`.
    """

    submitted: float = field(default_factory=perf_counter)
    started: float | None = None  # its first batch
    latest: float | None = None  # its last token
    ended: float | None = None
    seconds: float = 0.0
    prefilled: int = 0
    stepping: bool = False

    @property
    def running(self) -> bool:
        return self.started is not None and self.ended is None

    @property
    def settled(self) -> bool:
        return self.ended is not None and not self.stepping


class Meters:
    """Since the start, of all requests. A step may run in the middle of another, whose time does not have it."""

    def __init__(self) -> None:
        self._within = 0.0  # seconds of the steps in the middle of the one that runs
        self.queue = Histogram(SECONDS)
        self.first_token = Histogram(SECONDS)
        self.token = Histogram(STEPS)
        self.inference = Histogram(SECONDS)
        self.step_seconds = Histogram(STEPS)
        self.batch_tokens = Histogram(SIZES)
        self.batch_requests = Histogram(SIZES)

    @contextmanager
    def step(self, batch: "Batch") -> Iterator[None]:
        """Around one batch's forward pass and all that follows from it."""
        began, before = perf_counter(), self._within
        self._within = 0.0
        for segment in batch.segments:
            times = segment.sequence.request.times
            times.stepping = True
            if times.started is None:
                times.started = began
                self.queue.observe(began - times.submitted)
        try:
            yield
        finally:
            whole = perf_counter() - began
            took, self._within = whole - self._within, before + whole
            share = took / batch.num_tokens
            for segment in batch.segments:
                times = segment.sequence.request.times
                times.seconds += share * segment.length
                times.prefilled = segment.sequence.prefilled
                times.stepping = False
            self.step_seconds.observe(took)
            self.batch_tokens.observe(batch.num_tokens)
            self.batch_requests.observe(len(batch.segments))

    def sampled(self, sequence: "Sequence") -> None:
        """A token that is about to be delivered."""
        times, now = sequence.request.times, perf_counter()
        if times.latest is None:
            self.first_token.observe(now - times.submitted)
        else:
            self.token.observe(now - times.latest)
        times.latest = now

    def ended(self, sequence: "Sequence") -> None:
        """Before the terminal event."""
        times = sequence.request.times
        times.prefilled = sequence.prefilled
        times.ended = now = perf_counter()
        if times.started is not None:
            self.inference.observe(now - times.started)
