"""One packed forward pass: token ids in, last hidden states and the needed rows of logits out.

Knows models and devices; no requests' lives, no sampling. What differs by family: positions, type ids, the KV arena.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain

import torch
from cdvft.backbone import Backbone
from cdvft.linear import AdapterContext
from torch import Tensor

from cdvft_server.engine.attention import AttentionPlan, Piece, pieces_of
from cdvft_server.engine.batch import Batch, Segment
from cdvft_server.engine.kernels import KernelMaker, Style, style_for
from cdvft_server.engine.kv import KvArena

__all__ = ["Output", "Runner", "attention_by", "kv_arena", "kv_shape"]


@dataclass(frozen=True)
class Output:
    """`hidden [T, hidden]` in packed order; `logits [R, vocabulary]` fp32, a row for each of `batch.sampled`."""

    hidden: Tensor
    logits: Tensor | None


class Runner:
    """Runs batches on one backbone. Several runners, each with its own arena, may run in different threads."""

    stopped: str | None = None  # of one that records steps: why it does not any more

    def __init__(self, backbone: Backbone, context: AdapterContext, arena: KvArena | None) -> None:
        self.backbone, self.context, self.arena = backbone, context, arena
        self.device = backbone.device
        config = backbone.config
        self.groups = config.num_attention_heads // kv_shape(backbone)["kv_heads"]
        style = style_for(self.device, backbone.dtype, context.kernel)
        self._kernel = KernelMaker(self.groups, backbone.dtype, self.device, style)
        self._first_position = config.pad_token_id + 1 if backbone.info.family.pads_first else 0

    @property
    def attention(self) -> Style:
        """How attention is computed."""
        return self._kernel.style

    def graph_stats(self) -> dict[str, int]:
        """Of recorded steps, as `EngineStats` has them."""
        return {}

    @torch.inference_mode()
    def run(self, batch: Batch, between: Callable[[], None] | None = None) -> Output:
        """The whole forward pass of one batch; the arena then holds its keys and values. `between` is called as each
        adapted layer begins, and may run other sequences' batches while this one's adapters are suspended."""
        with self.context.activate(batch.slices, batch.merged, between):
            hidden = self.backbone.model(
                input_ids=self._packed(batch, lambda s: s.ids),
                position_ids=self._packed(batch, self._positions),
                attention_mask=None,
                use_cache=False,
                packed=self._plan(batch),
                **self._type_ids(batch),
            ).last_hidden_state[0]
        rows = [segment.stop - 1 for segment in batch.sampled]
        if not rows or self.backbone.lm_head is None:
            return Output(hidden, None)
        return Output(hidden, self.backbone.lm_head(hidden[torch.tensor(rows, device=self.device)]).float())

    def _positions(self, segment: Segment) -> range:
        first = self._first_position + segment.past
        return range(first, first + segment.length)

    def _type_ids(self, batch: Batch) -> dict[str, Tensor]:
        if not self.backbone.info.family.token_types:
            return {}
        return {"token_type_ids": self._packed(batch, lambda s: s.sequence.request.type_ids or [0] * s.length)}

    def _packed(self, batch: Batch, values: Callable[[Segment], Iterable[int]]) -> Tensor:
        """`[1, T]`."""
        return torch.tensor([list(chain.from_iterable(map(values, batch.segments)))], device=self.device)

    def _plan(self, batch: Batch) -> AttentionPlan:
        if self.arena is None:
            own = [Piece(s.start, s.stop, s.start, s.stop, causal=False) for s in batch.segments]
            return AttentionPlan(self._kernel(own))
        pieces: list[Piece] = []
        slots: list[int] = []
        for s in batch.segments:
            span = s.sequence.span
            if span is None:
                raise RuntimeError(f"request {s.sequence.request.id} has no KV span")
            pieces += pieces_of(s.start, s.length, s.past, span.start)
            slots += range(span.start + s.past, span.start + s.past + s.length)
        return AttentionPlan(self._kernel(pieces), self.arena, torch.tensor(slots, device=self.device))


def kv_shape(backbone: Backbone) -> dict[str, int]:
    """What one token's keys and values look like: layers, kv_heads, head_dim."""
    config = backbone.config
    heads = config.num_attention_heads
    return {
        "layers": config.num_hidden_layers,
        "kv_heads": getattr(config, "num_key_value_heads", None) or heads,
        "head_dim": getattr(config, "head_dim", None) or config.hidden_size // heads,
    }


def kv_arena(backbone: Backbone, tokens: int) -> KvArena | None:
    """An arena of this many tokens for a decoder, None for an encoder."""
    if backbone.info.family.kind == "encoder":
        return None
    return KvArena(tokens, dtype=backbone.dtype, device=backbone.device, **kv_shape(backbone))


@contextmanager
def attention_by(backbone: Backbone, name: str) -> Iterator[None]:
    """The model's attention implementation inside the block; not while other threads run the model."""
    config = backbone.model.config
    before = config._attn_implementation
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = before
