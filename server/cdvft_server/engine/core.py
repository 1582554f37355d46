"""What the engine thread does: `schedule -> run -> advance`. Knows no threads; one caller at a time.

What fails in a request (its forward, its sampling, its head, its delivery) ends that request alone. Its lease and its
KV span are given back before its terminal event is delivered.
"""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from cdvft.backbone import Backbone

from cdvft_server.engine.batch import Batch, Event, Failed, Finished, FinishReason, Request, Scores, Sequence, Token
from cdvft_server.engine.meters import Meters
from cdvft_server.engine.pool import AdapterPool
from cdvft_server.engine.runners import Output, Runner
from cdvft_server.engine.sampling import sample_rows
from cdvft_server.engine.scheduler import Scheduler, Share
from cdvft_server.engine.scoring import accumulate, score

__all__ = ["Core", "Counters"]


@dataclass
class Counters:
    """Since the start; `tokens` went through the model, of these `unmerged` with an adapter's tables and `merged` with
    merged weights; `generated` were delivered, `retried` are failed batches."""

    batches: int = 0
    tokens: int = 0
    unmerged: int = 0
    merged: int = 0
    generated: int = 0
    finished: int = 0
    failed: int = 0
    retried: int = 0


class Core:
    """`forget(request_id)` is called as a request ends, before its last event; `let_in()` as each
    adapted layer of a batch begins: it may add to the scheduler who has arrived."""

    def __init__(
        self,
        backbone: Backbone,
        pool: AdapterPool,
        runner: Runner,
        scheduler: Scheduler,
        *,
        forget: Callable[[str], None],
        let_in: Callable[[], None] = lambda: None,
    ) -> None:
        self.backbone, self.pool, self.runner, self.scheduler = backbone, pool, runner, scheduler
        self.counters = Counters()
        self.hurried: Collection[str] = ()  # see `Scheduler.hurried`, while that batch runs
        self.meters = Meters()
        self._forget, self._let_in = forget, let_in

    def step(self) -> None:
        """One packed forward pass and what follows from it. Needs work."""
        shares = self.scheduler.schedule()
        if not shares:
            raise RuntimeError("there is work, but nothing of it fits a batch")
        with self._hurrying():
            self._take(shares, self._between)

    def finish(self, sequence: Sequence, reason: FinishReason) -> None:
        self._end(sequence, Finished(sequence.request.id, reason))

    def fail(self, sequence: Sequence, error: Exception) -> None:
        self._end(sequence, Failed(sequence.request.id, error))

    def _take(self, shares: list[Share], between: Callable[[], None] | None) -> None:
        placements = self.pool.placements([sequence.request.lease for sequence, _ in shares])
        batch = Batch.pack((*share, placement) for share, placement in zip(shares, placements, strict=True))
        with self.meters.step(batch):
            for own, output in self._run(batch, between):
                self._advance(own, output)

    def _between(self) -> None:
        """In the middle of a batch: who uses little need not wait for its end."""
        self._let_in()
        shares = self.scheduler.interrupt()
        if shares:
            with self._hurrying(), self.runner.context.suspended():
                self._take(shares, None)

    @contextmanager
    def _hurrying(self) -> Iterator[None]:
        before, self.hurried = self.hurried, self.scheduler.hurried
        try:
            yield
        finally:
            self.hurried = before

    def _run(self, batch: Batch, between: Callable[[], None] | None) -> list[tuple[Batch, Output]]:
        """The batch's output; if it fails, each segment's by itself, so that only the culprit ends."""
        self.counters.batches += 1
        self.counters.tokens += batch.num_tokens
        self.counters.unmerged += sum(own.stop - own.start for own in batch.slices)
        self.counters.merged += sum(run.stop - run.start for run in batch.merged)
        try:
            return [(batch, self.runner.run(batch, between))]
        except Exception as error:
            if len(batch.segments) == 1:
                self.fail(batch.segments[0].sequence, error)
                return []
        self.counters.retried += 1
        return [result for own in batch.alone() for result in self._run(own, between)]

    def _advance(self, batch: Batch, output: Output) -> None:
        sampled = [segment.sequence for segment in batch.sampled]
        scored = [segment for segment in batch.segments if segment.sequence.request.sampling is None]
        for segment in batch.segments:
            segment.sequence.computed += segment.length
        if output.logits is not None:
            self._sample(sampled, output.logits)
        accumulate(scored, output.hidden)
        self._score([segment.sequence for segment in scored if segment.completes])

    def _sample(self, sequences: list[Sequence], logits: torch.Tensor) -> None:
        params = [s.request.sampling for s in sequences if s.request.sampling is not None]
        tokens = sample_rows(logits, params, [s.generated for s in sequences])
        for sequence, token in zip(sequences, tokens, strict=True):
            if isinstance(token, Exception):
                self.fail(sequence, token)
            else:
                self._append(sequence, token)

    def _append(self, sequence: Sequence, token: int) -> None:
        request, sampling = sequence.request, sequence.request.sampling
        if sampling is None:
            raise RuntimeError(f"request {request.id} does not generate")
        if token in sampling.stop_token_ids or (token in self.backbone.eos_ids and not sampling.ignore_eos):
            self.finish(sequence, "stop")
            return
        sequence.tokens.append(token)
        self.counters.generated += 1
        self.meters.sampled(sequence)
        if not _deliver(request, Token(request.id, token, sequence.generated - 1)):
            self.finish(sequence, "cancelled")
        elif sequence.generated == sampling.max_tokens:
            self.finish(sequence, "length")

    def _score(self, sequences: list[Sequence]) -> None:
        for sequence, logits in zip(sequences, score(sequences, self.backbone.pooler), strict=True):
            if isinstance(logits, Exception):
                self.fail(sequence, logits)
            else:
                self._end(sequence, Scores(sequence.request.id, logits))

    def _end(self, sequence: Sequence, event: Event) -> None:
        """Give everything back, once, then deliver the terminal event."""
        if sequence.ended:
            return
        sequence.ended = True
        self.scheduler.remove(sequence)
        self.meters.ended(sequence)
        self._forget(sequence.request.id)
        sequence.request.release()
        if isinstance(event, Failed):
            self.counters.failed += 1
        else:
            self.counters.finished += 1
        _deliver(sequence.request, event)


def _deliver(request: Request, event: Event) -> bool:
    """Whether the listener took it. Its faults are its own, of whatever kind: this thread serves the others."""
    try:
        request.deliver(event)
    except BaseException:
        return False
    return True
