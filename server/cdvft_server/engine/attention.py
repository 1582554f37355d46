"""Attention over packed segments: each segment sees its own keys only, at their exact length; nothing is padded.

Knows no adapters and no scheduling. Registered with transformers as "cdvft_packed"; the model's forward hands our
`AttentionPlan` through as the keyword `packed`. transformers makes no mask for a name it has no mask function for, so
causality is this module's alone (`cdvft_server.engine.proof` refuses bases that ask for any other mask).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from cdvft_server.engine.kv import KvArena

__all__ = ["ATTENTION", "AttentionPlan", "CausalMask", "Piece", "pieces_of"]

ATTENTION = "cdvft_packed"
BLOCK = 256  # queries of one attention call: bounds the mask and skips keys that the block cannot see


@dataclass(frozen=True)
class Piece:
    """Packed tokens `[start, stop)` attend keys `[kv_start, kv_stop)`: arena tokens, or packed tokens for encoders."""

    start: int
    stop: int
    kv_start: int
    kv_stop: int


def pieces_of(start: int, length: int, past: int, kv_start: int) -> list[Piece]:
    """A causal segment in blocks of queries; each block's keys end with its own last token."""
    ends = [*range(BLOCK, length, BLOCK), length]
    return [
        Piece(start + begin, start + end, kv_start, kv_start + past + end)
        for begin, end in zip([0, *ends], ends, strict=False)
    ]


class CausalMask:
    """Additive masks as views of one template; `groups` query heads share a key head, folded into the query axis."""

    def __init__(self, groups: int, dtype: torch.dtype, device: torch.device) -> None:
        self.groups, self.dtype, self.device = groups, dtype, device
        self._template = torch.empty(0, 0, dtype=dtype, device=device)

    def view(self, queries: int, keys: int) -> Tensor | None:
        """`[queries * groups, keys]`: query i sees the keys up to `keys - queries + i`; None if all see all."""
        if queries == 1:
            return None
        if self._template.shape[1] < keys:
            self._template = self._build(1 << (keys - 1).bit_length())
        return self._template[(BLOCK - queries) * self.groups :, self._template.shape[1] - keys :]

    def _build(self, width: int) -> Tensor:
        last_key = torch.arange(BLOCK * self.groups, device=self.device) // self.groups + width - BLOCK
        hidden = torch.arange(width, device=self.device)[None, :] > last_key[:, None]
        return torch.zeros(hidden.shape, dtype=self.dtype, device=self.device).masked_fill_(hidden, -torch.inf)


@dataclass(frozen=True)
class AttentionPlan:
    """One batch's attention, the same in every layer. `arena` None: an encoder, every segment sees itself whole.

    `slots [T]`: the arena token of each packed token; `masks[i]` belongs to `pieces[i]`.
    """

    pieces: Sequence[Piece]
    masks: Sequence[Tensor | None]
    arena: KvArena | None = None
    slots: Tensor | None = None


def packed_attention(  # noqa: PLR0917 - transformers' calling convention
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    *,
    packed: AttentionPlan,
    **_: Any,
) -> tuple[Tensor, None]:
    """`query [1, heads, T, d]`, `key`, `value [1, kv_heads, T, d]` -> `[1, T, heads, d]`.

    Grouped queries are folded: `[1, kv_heads, T * groups, d]`, query-major, so that a segment stays a slice.
    """
    heads, length, d = query.shape[1:]
    kv_heads = key.shape[1]
    groups = heads // kv_heads
    if groups > 1:
        query = query.view(1, kv_heads, groups, length, d).transpose(2, 3).reshape(1, kv_heads, length * groups, d)
    key, value = _stored(module, key, value, packed)
    outputs = [
        scaled_dot_product_attention(
            query[:, :, piece.start * groups : piece.stop * groups],
            key[:, :, piece.kv_start : piece.kv_stop],
            value[:, :, piece.kv_start : piece.kv_stop],
            attn_mask=mask,
            scale=scaling,
        )
        for piece, mask in zip(packed.pieces, packed.masks, strict=True)
    ]
    output = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)  # [1, kv_heads, T * groups, d]
    return output.view(1, kv_heads, length, groups, d).permute(0, 2, 1, 3, 4).reshape(1, length, heads, d), None


def _stored(module: Any, key: Tensor, value: Tensor, packed: AttentionPlan) -> tuple[Tensor, Tensor]:
    """Write this batch's keys and values into the layer's arena and give the arena, `[1, kv_heads, size, d]`."""
    if packed.arena is None:
        return key, value
    keys, values = packed.arena.keys[module.layer_idx], packed.arena.values[module.layer_idx]
    keys.index_copy_(0, packed.slots, key[0].transpose(0, 1))
    values.index_copy_(0, packed.slots, value[0].transpose(0, 1))
    return keys.transpose(0, 1)[None], values.transpose(0, 1)[None]


ALL_ATTENTION_FUNCTIONS.register(ATTENTION, packed_attention)
