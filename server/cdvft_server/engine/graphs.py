"""Decode steps from recordings: batches in which each segment is one token that follows others, and none is merged.

A recording belongs to a bucket, the number of segments rounded up to a power of two, and to the bank views of a batch.
It reads everything that differs between two steps from one tensor on the device, which is filled by one copy. Padding
is tokens of the base that write to, and see, the arena's spare token alone.

Views are held weakly: a bank that is resized has a new view, so its old tables go as if there were no recordings, and
those that read them are never repeated again, for a batch holds the views that it is looked up by.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from weakref import ReferenceType, ref

import torch
from cdvft.backbone import Backbone
from cdvft.linear import AdapterContext, BankSlice
from torch import Tensor

from cdvft_server.engine.attention import AttentionPlan
from cdvft_server.engine.bank import BankView
from cdvft_server.engine.batch import Batch, Segment
from cdvft_server.engine.capture import Recorder
from cdvft_server.engine.kv import KvArena
from cdvft_server.engine.proof import TOLERANCE, relative_errors
from cdvft_server.engine.runners import Output, Runner

__all__ = ["GraphRunner"]

log = logging.getLogger(__name__)

AFTER = 16  # batches of a kind run plainly first: recording one costs about five of them
AGAIN = 4096  # and so many more where recording failed: the reason may have gone
MOST_TOKENS = 256  # of a recorded batch: larger ones keep a device busy without
MOST_RECORDINGS = 32
MOST_KINDS = 256  # that are remembered and not recorded
IDS, START, LENGTH, ROWS = range(4)  # rows of `inputs`; from ROWS on the table rows of each bank


@dataclass(frozen=True)
class Kind:
    """What a recording is good for: up to `bucket` segments, with adapters of these banks."""

    bucket: int
    banks: tuple[ReferenceType[BankView], ...]

    @staticmethod
    def of(batch: Batch) -> "Kind | None":
        """None: no decode step that can be recorded."""
        segments = batch.segments
        decodes = all(own.length == 1 and own.past > 0 for own in segments)
        if not decodes or batch.merged or len(segments) > MOST_TOKENS:
            return None
        views = dict.fromkeys(own.placement.bank for own in segments if own.placement is not None)
        return Kind(1 << (len(segments) - 1).bit_length(), tuple(map(ref, views)))

    @property
    def gone(self) -> bool:
        return any(view() is None for view in self.banks)

    def inputs(self, segments: list[Segment], spare: int) -> list[list[int]]:
        """`[ROWS + banks, bucket]`; a span's length counts the token itself, whose keys are written at its end."""
        padding = [0] * (self.bucket - len(segments))
        ids = [own.ids[0] for own in segments] + padding
        start = [_span_start(own) for own in segments] + [spare for _ in padding]
        length = [own.past + 1 for own in segments] + [1 for _ in padding]
        rows = [[_row(own, view()) for own in segments] + padding for view in self.banks]
        return [ids, start, length, *rows]


@dataclass(frozen=True)
class Recorded:
    """`repeat` gives `hidden [bucket, hidden]` and `logits [bucket, vocabulary]` of what is in `inputs`."""

    inputs: Tensor
    repeat: Callable[[], tuple[Tensor, Tensor]]


class GraphRunner(Runner):
    """A decoder's runner. A recording serves once it gave what the plain forward of the same batch gives; whatever
    fails, the plain forward serves. A recorded batch is not interrupted: it is one short step."""

    def __init__(self, backbone: Backbone, context: AdapterContext, arena: KvArena, recorder: Recorder) -> None:
        super().__init__(backbone, context, arena)
        self.replays = self.refused = 0
        self._kv, self._recorder = arena, recorder
        self.stopped = self._first_attention()
        self._recorded: OrderedDict[Kind, Recorded] = OrderedDict()  # the one not used for longest first
        self._seen: OrderedDict[Kind, int] = OrderedDict()  # how often plainly

    def graph_stats(self) -> dict[str, int]:
        return {"graphs": self.held, "graph_replays": self.replays, "graphs_refused": self.refused}

    @property
    def held(self) -> int:
        """Recordings."""
        return len(self._recorded)

    @torch.inference_mode()
    def run(self, batch: Batch, between: Callable[[], None] | None = None) -> Output:
        kind = None if self.stopped is not None else Kind.of(batch)
        if kind is None or not self._intact():
            return super().run(batch, between)
        recorded = self._recorded.get(kind)
        if recorded is not None:
            self._recorded.move_to_end(kind)
            try:
                output = self._repeat(recorded, kind, batch)
            except Exception as error:
                output = super().run(batch)  # where the batch is at fault, this raises
                del self._recorded[kind]
                self._refuse(kind, _said(error))
            else:
                self.replays += 1
            return output
        return self._try(kind, batch) if self._is_due(kind) else super().run(batch, between)

    @torch.inference_mode()
    def _first_attention(self) -> str | None:
        """Compile the kernels before anybody waits for them; what is wrong where that fails."""
        start, length = torch.tensor([[0], [1]], device=self.device)
        key = torch.zeros_like(self._kv.keys[0][:1])  # [1, kv_heads, d]: what the arena holds is anything yet
        query = key.new_zeros(key.shape[1], self.groups, key.shape[2])
        try:
            self._recorder.attention(start, length)(query, key, key, None)
        except Exception as error:
            log.warning("decode steps are not recorded: %s", _said(error))
            return "the attention kernel fails"
        return None

    def _intact(self) -> bool:
        if self._recorder.intact():
            return True
        self.stopped = "too many FFT plans"
        log.warning("decode steps are no longer recorded: %s", self.stopped)
        self._recorded.clear()
        return False

    def _is_due(self, kind: Kind) -> bool:
        """Count a batch of this kind, and say whether it is one to record."""
        for known in (*self._seen, *self._recorded):
            if known.gone:
                self._seen.pop(known, None)
                self._recorded.pop(known, None)
        self._seen[kind] = count = self._seen.get(kind, 0) + 1
        self._seen.move_to_end(kind)
        if len(self._seen) > MOST_KINDS:
            self._seen.popitem(last=False)
        return count > AFTER

    def _try(self, kind: Kind, batch: Batch) -> Output:
        """Record, repeat, compare. The plain forward comes last, so that its keys and values stay in the arena."""
        failed = recorded = found = None
        try:
            recorded = self._record(kind, batch)
            found = self._repeat(recorded, kind, batch)
        except Exception as error:
            failed = _said(error)
        plain = super().run(batch)
        if recorded is not None and found is not None:
            worst = _difference(found, plain)
            if worst is None:  # nothing to compare: another time
                self._seen[kind] = 0
                return plain
            if worst <= TOLERANCE[self.backbone.dtype]:
                self._keep(kind, recorded)
                return plain
            failed = f"it differs from the plain forward by {worst:.2g} (relative)"
        self._refuse(kind, failed or "")
        return plain

    def _keep(self, kind: Kind, recorded: Recorded) -> None:
        self._seen.pop(kind, None)
        self._recorded[kind] = recorded
        if len(self._recorded) > MOST_RECORDINGS:
            self._recorded.popitem(last=False)

    def _refuse(self, kind: Kind, reason: str) -> None:
        self.refused += 1
        self._seen[kind] = -AGAIN
        log.warning("decode steps of %d tokens, %d banks run unrecorded: %s", kind.bucket, len(kind.banks), reason)

    def _record(self, kind: Kind, batch: Batch) -> Recorded:
        inputs = torch.tensor(kind.inputs(batch.segments, self._kv.size), device=self.device)
        return Recorded(inputs, self._recorder.record(lambda: self._forward(kind, inputs)))

    def _forward(self, kind: Kind, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """The batch that is in `inputs`: no host work depends on what is in them."""
        start, length = inputs[START], inputs[LENGTH]
        plan = AttentionPlan(self._recorder.attention(start, length), self._kv, start + length - 1)
        banks = [_whole(view(), rows) for view, rows in zip(kind.banks, inputs[ROWS:], strict=True)]
        with self.context.activate(banks):
            hidden: Tensor = self.backbone.model(
                input_ids=inputs[IDS][None],
                position_ids=(length - 1)[None],
                attention_mask=None,
                use_cache=False,
                packed=plan,
            ).last_hidden_state[0]
        if self.backbone.lm_head is None:
            raise RuntimeError("the base generates nothing")
        return hidden, self.backbone.lm_head(hidden)

    def _repeat(self, recorded: Recorded, kind: Kind, batch: Batch) -> Output:
        """The results are copied: the next repetition, of whichever recording, may write over them."""
        recorded.inputs.copy_(torch.tensor(kind.inputs(batch.segments, self._kv.size)))
        hidden, logits = recorded.repeat()
        tokens, rows = len(batch.segments), [own.start for own in batch.sampled]
        if not rows:
            return Output(hidden[:tokens].clone(), None)
        picked = logits[:tokens] if len(rows) == tokens else logits[torch.tensor(rows, device=self.device)]
        return Output(hidden[:tokens].clone(), picked.to(torch.float32, copy=True))


def _span_start(segment: Segment) -> int:
    span = segment.sequence.span
    if span is None:
        raise RuntimeError(f"request {segment.sequence.request.id} has no KV span")
    return span.start


def _row(segment: Segment, view: BankView | None) -> int:
    """0, the base's, where the adapter is not in this bank."""
    placement = segment.placement
    return placement.row if placement is not None and placement.bank is view else 0


def _whole(view: BankView | None, rows: Tensor) -> BankSlice:
    """All tokens, each by its row of the bank."""
    if view is None:
        raise RuntimeError("a bank is gone that a recording reads")
    return BankSlice(0, len(rows), view.method, view.tables, view.layouts, (), view.shared, view.adders, rows)


def _difference(found: Output, plain: Output) -> float | None:
    """The largest relative error of a token's hidden states or logits, of those that are finite; None: none is."""
    pairs = [(found.hidden, plain.hidden)]
    if found.logits is not None and plain.logits is not None:
        pairs.append((found.logits, plain.logits))
    errors = torch.cat([relative_errors(own, other)[other.isfinite().all(-1)] for own, other in pairs])
    return float(errors.max()) if len(errors) else None


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
