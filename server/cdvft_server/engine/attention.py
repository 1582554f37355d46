"""Attention over packed segments: each segment sees its own keys only. Knows no adapters and no scheduling.

Registered with transformers as "cdvft_packed"; the model's forward hands our `AttentionPlan` through as the keyword
`packed`. transformers makes no mask for a name that it has no mask function for, so causality is ours alone, and
`cdvft_server.engine.allowlist` refuses bases that ask for any other mask.
"""

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from cdvft_server.engine.kv import KvArena

__all__ = ["ATTENTION", "BLOCK", "AttentionPlan", "Kernel", "Piece", "pieces_of"]

ATTENTION = "cdvft_packed"
BLOCK = 256  # queries of a piece: bounds the masks and skips keys that the block cannot see


@dataclass(frozen=True)
class Piece:
    """Packed tokens `[start, stop)` attend keys `[kv_start, kv_stop)`: arena tokens, or packed tokens for encoders.

    Causal: query i of n sees the keys but the last n - 1 - i.
    """

    start: int
    stop: int
    kv_start: int
    kv_stop: int
    causal: bool

    @property
    def queries(self) -> int:
        return self.stop - self.start

    @property
    def keys(self) -> int:
        return self.kv_stop - self.kv_start


def pieces_of(start: int, length: int, past: int, kv_start: int) -> list[Piece]:
    """A causal segment in blocks of queries; each block's keys end with its own last token."""
    if length == 1:  # every decode step
        return [Piece(start, start + 1, kv_start, kv_start + past + 1, causal=False)]
    begins = range(0, length, BLOCK)
    ends = [*begins[1:], length]
    return [
        Piece(start + a, start + b, kv_start, kv_start + past + b, causal=True)
        for a, b in zip(begins, ends, strict=True)
    ]


class Kernel(Protocol):
    """How a batch's pieces are computed; the same in every layer. `pieces` cover the packed tokens in order."""

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
        """`query [kv_heads, T * groups, d]` (groups inner), `key`, `value [S, kv_heads, d]` -> like `query`."""


@dataclass(frozen=True)
class AttentionPlan:
    """One batch's attention. `arena` None: an encoder; else `slots [T]` is the arena token of each packed token."""

    kernel: Kernel
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

    Query heads that share a key head are folded into the query axis, `[kv_heads, T * groups, d]`.
    """
    if attention_mask is not None:
        raise RuntimeError("transformers made a mask for packed attention, which has its own")
    heads, length, d = query.shape[1:]
    kv_heads = key.shape[1]
    groups = heads // kv_heads
    folded = query.view(kv_heads, groups, length, d).transpose(1, 2).reshape(kv_heads, length * groups, d)
    output = packed.kernel(folded, *_keys_values(module, key, value, packed), scaling)
    return output.view(kv_heads, length, groups, d).transpose(0, 1).reshape(1, length, heads, d), None


def _keys_values(module: Any, key: Tensor, value: Tensor, packed: AttentionPlan) -> tuple[Tensor, Tensor]:
    """This batch's own, or the layer's arena after they were written into it; `[S, kv_heads, d]`."""
    key, value = key[0].transpose(0, 1), value[0].transpose(0, 1)  # [T, kv_heads, d]
    if packed.arena is None:
        return key, value
    keys, values = packed.arena.keys[module.layer_idx], packed.arena.values[module.layer_idx]
    keys.index_copy_(0, packed.slots, key)
    values.index_copy_(0, packed.slots, value)
    return keys, values


ALL_ATTENTION_FUNCTIONS.register(ATTENTION, packed_attention)
