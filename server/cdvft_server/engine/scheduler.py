"""Which tokens go into the next batch. Continuous batching under a token budget; knows no tensors.

Order of service: decode steps (one token each), prompts that have begun, then new requests in strict arrival order:
the head of the queue waits until its KV span fits and nobody overtakes it, so nothing starves.
Encoder requests are whole segments: one that is longer than the budget has a batch for itself.
"""

from collections import deque

from cdvft_server.engine.batch import Sequence
from cdvft_server.engine.kv import SpanAllocator

__all__ = ["Scheduler", "Share"]

Share = tuple[Sequence, int]  # a sequence and how many of its next tokens go into the batch


class Scheduler:
    """`kv` None: an encoder. Used by the engine thread alone."""

    def __init__(self, kv: SpanAllocator | None, max_batch_tokens: int) -> None:
        self.kv = kv
        self.max_batch_tokens = max_batch_tokens
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    def add(self, sequence: Sequence) -> None:
        self.waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence wherever it is, and give its KV span back."""
        if sequence in self.running:
            self.running.remove(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)
        if sequence.span is not None and self.kv is not None:
            self.kv.free(sequence.span)
            sequence.span = None

    def schedule(self) -> list[Share]:
        """The next batch's shares: never empty while there is work; more than the budget only for a lone segment."""
        budget = self.max_batch_tokens
        shares: list[Share] = []
        for sequence in sorted(self.running, key=lambda s: s.remaining > 1):
            length = min(sequence.remaining, budget)
            if length:
                shares.append((sequence, length))
                budget -= length
        while self.waiting and (length := self._admissible(self.waiting[0], budget, alone=not shares)):
            sequence = self.waiting.popleft()
            if self.kv is not None:
                sequence.span = self.kv.reserve(sequence.need)
            self.running.append(sequence)
            shares.append((sequence, length))
            budget -= length
        return shares

    def _admissible(self, sequence: Sequence, budget: int, alone: bool) -> int:
        """How many tokens of a waiting sequence may go now; 0 if it must wait."""
        if self.kv is None:
            return sequence.remaining if alone or sequence.remaining <= budget else 0
        fits = len(self.running) < self.max_batch_tokens and self.kv.can_reserve(sequence.need)
        return min(sequence.remaining, budget) if fits else 0
