"""The engine's nouns: a request and its events, the sequence it becomes, and segments packed into a batch."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from typing import Literal

from cdvft.linear import BankSlice, MergedRun
from torch import Tensor

from cdvft_server.engine.bank import Placement
from cdvft_server.engine.kv import Span
from cdvft_server.engine.merged import MergedUse, MergedWeights
from cdvft_server.engine.meters import Times
from cdvft_server.engine.pool import Lease

__all__ = [
    "Batch",
    "Event",
    "Failed",
    "FinishReason",
    "Finished",
    "Request",
    "SamplingParams",
    "Scores",
    "Segment",
    "Sequence",
    "Token",
]

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True)
class SamplingParams:
    """How one request picks its tokens. `temperature` 0 is greedy, `top_k` 0 and `top_p` 1 keep every token.

    `stop_token_ids` end the sequence like the base's own EOS ids; `ignore_eos` disables the latter only.
    """

    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    seed: int
    stop_token_ids: frozenset[int] = frozenset()
    ignore_eos: bool = False


@dataclass(frozen=True)
class Token:
    """One generated token; `position` counts from 0 in the answer. The token that ends a sequence is not sent."""

    request_id: str
    token: int
    position: int


@dataclass(frozen=True)
class Scores:
    """Terminal: the head's outputs, one for each label, in fp32."""

    request_id: str
    logits: list[float]


@dataclass(frozen=True)
class Finished:
    """Terminal: "stop" (EOS or a stop id), "length" (max_tokens), or "cancelled" (also a request with a head)."""

    request_id: str
    reason: FinishReason


@dataclass(frozen=True)
class Failed:
    """Terminal: this request's own forward, sampling or head failed."""

    request_id: str
    error: Exception


Event = Token | Scores | Finished | Failed


@dataclass(frozen=True, eq=False)
class Request:
    """What the engine is asked: generate (`sampling`) or, where that is None, score with the lease's head.

    `deliver` is called on the engine thread: Tokens, then exactly one terminal event. `lease` None is the base;
    once `Engine.submit` has returned, the engine owns the lease, and that of `merged` (None: unmerged throughout), and
    releases them before the terminal event. `tenant` and its `weight` decide on its share where several compete.
    """

    id: str
    ids: list[int]
    deliver: Callable[[Event], None]
    type_ids: list[int] | None = None
    lease: Lease | None = None
    sampling: SamplingParams | None = None
    merged: MergedUse | None = None
    times: Times = field(default_factory=Times)
    tenant: str = "default"
    weight: float = 1.0

    def release(self) -> None:
        """Give back what the engine owns of it."""
        if self.lease is not None:
            self.lease.release()
        if self.merged is not None:
            self.merged.lease.release()


@dataclass(eq=False)
class Sequence:
    """A request on its way: `tokens` (prompt, then answer) of which the first `computed` went through the model."""

    request: Request
    tokens: list[int] = field(init=False)
    computed: int = 0
    span: Span | None = None
    pooled: Tensor | None = None  # [hidden] fp32, what the head sees; a sum until the last chunk for mean pooling
    ended: bool = False

    def __post_init__(self) -> None:
        self.tokens = list(self.request.ids)

    @property
    def remaining(self) -> int:
        """Tokens that have not gone through the model: the rest of a prompt, or the one token of a decode step."""
        return len(self.tokens) - self.computed

    @property
    def generated(self) -> int:
        return len(self.tokens) - len(self.request.ids)

    @property
    def prefilled(self) -> int:
        """Prompt tokens that went through the model."""
        return min(self.computed, len(self.request.ids))

    @property
    def decodes(self) -> bool:
        """Whether its prompt went through the model."""
        return self.computed >= len(self.request.ids)

    @property
    def need(self) -> int:
        """KV tokens, known at admission."""
        return len(self.request.ids) + (self.request.sampling.max_tokens if self.request.sampling else 0)


@dataclass(frozen=True, eq=False)
class Segment:
    """One sequence's share of a batch: packed tokens `[start, stop)` are its tokens `[past, past + length)`."""

    sequence: Sequence
    start: int
    length: int
    past: int
    placement: Placement | None
    merged: MergedWeights | None = None  # instead of the placement

    @property
    def stop(self) -> int:
        return self.start + self.length

    @property
    def completes(self) -> bool:
        """Whether the sequence has no token left after this segment."""
        return self.past + self.length == len(self.sequence.tokens)

    @property
    def ids(self) -> list[int]:
        return self.sequence.tokens[self.past : self.past + self.length]


@dataclass(frozen=True, eq=False)
class Batch:
    """Segments packed without padding: the base's first, each bank's contiguous, those of merged weights last."""

    segments: list[Segment]
    slices: list[BankSlice]
    merged: list[MergedRun]

    @property
    def num_tokens(self) -> int:
        return self.segments[-1].stop

    @property
    def sampled(self) -> list[Segment]:
        """Segments whose last token's logits pick the next token; ask before the step advances."""
        return [s for s in self.segments if s.completes and s.sequence.request.sampling is not None]

    @staticmethod
    def pack(shares: Iterable[tuple[Sequence, int, Placement | None]]) -> "Batch":
        """Order (sequence, number of its next tokens, where its adapter sits) by bank and row, and lay them out."""
        known = list(shares)
        decoding = Counter(_digest(sequence) for sequence, _, _ in known if sequence.decodes)
        placed = [(*share, _merged(share[0], decoding)) for share in known]
        segments, start = [], 0
        for sequence, length, placement, merged in sorted(placed, key=lambda own: _order(*own[2:])):
            segments.append(Segment(sequence, start, length, sequence.computed, placement, merged))
            start += length
        unmerged = [segment for segment in segments if segment.merged is None]
        grouped = groupby(unmerged, key=lambda segment: segment.placement and segment.placement.bank)
        slices = [_slice(list(own)) for bank, own in grouped if bank is not None]
        runs = groupby(segments[len(unmerged) :], key=lambda segment: segment.merged)
        return Batch(segments, slices, [_run(list(own)) for _, own in runs])

    def alone(self) -> "list[Batch]":
        """The same work, each segment by itself."""
        return [Batch.pack([(s.sequence, s.length, s.placement)]) for s in self.segments]


def _digest(sequence: Sequence) -> str | None:
    return None if sequence.request.lease is None else sequence.request.lease.digest


def _merged(sequence: Sequence, decoding: Mapping[str | None, int]) -> MergedWeights | None:
    """The merged weights of its next tokens; `decoding`: how many decode steps of each adapter are in the batch."""
    use = sequence.request.merged
    if use is None:
        return None
    pays = decoding[_digest(sequence)] >= use.decode_from if sequence.decodes else use.prompt
    return use.lease.weights if pays else None


def _order(placement: Placement | None, merged: MergedWeights | None) -> tuple[int, int, int, str]:
    if merged is not None:
        return (1, 0, 0, merged.digest)
    return (0, -1, 0, "") if placement is None else (0, placement.bank.number, placement.row, "")


def _run(segments: list[Segment]) -> MergedRun:
    """Neighbours with the same merged weights."""
    return MergedRun(segments[0].start, segments[-1].stop, segments[0].merged.weights if segments[0].merged else {})


def _slice(segments: list[Segment]) -> BankSlice:
    """All segments of one bank; neighbours with one adapter become one run."""
    placed = [(s.placement, s.length) for s in segments if s.placement is not None]
    bank = placed[0][0].bank
    runs = [(row, sum(n for _, n in own)) for row, own in groupby(placed, key=lambda pair: pair[0].row)]
    start, stop = segments[0].start, segments[-1].stop
    return BankSlice(start, stop, bank.method, bank.tables, bank.layouts, runs, bank.shared, bank.adders)
