"""Three ways to compute a batch's pieces, equal up to rounding: all in one call of our own, exact views one by one, or
few padded groups.

A CPU takes attention.c where it was compiled and knows the dtype, else a loop of torch's calls over exact views,
without padding or copies; an accelerator few large calls.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from cdvft.kernels import Wanted
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from cdvft_server.engine.attention import BLOCK, Kernel, Piece
from cdvft_server.engine.native import DTYPES, NativeCall, library

__all__ = ["ExactViews", "KernelMaker", "PaddedGroups", "Style", "style_for"]

Style = Literal["native", "views", "groups"]


class KernelMaker:
    """Makes each batch's kernel; `style` None: by `style_for`."""

    def __init__(self, groups: int, dtype: torch.dtype, device: torch.device, style: Style | None = None) -> None:
        self.groups, self.device = groups, device
        self.style = style or style_for(device, dtype)
        self._mask = CausalMask(groups, dtype, device)

    def __call__(self, pieces: Sequence[Piece]) -> Kernel:
        if self.style == "native":
            return NativeCall(pieces, self.groups)
        if self.style == "views":
            masks = [self._mask.view(piece.queries, piece.keys) if piece.causal else None for piece in pieces]
            return ExactViews(pieces, masks, self.groups)
        return PaddedGroups.of(pieces, self.groups, self.device)


def style_for(device: torch.device, dtype: torch.dtype, wanted: Wanted = "auto") -> Style:
    """The one place that decides; `wanted` "torch" means torch's own calls."""
    if device.type != "cpu":
        return "groups"
    return "native" if wanted != "torch" and dtype in DTYPES and library() is not None else "views"


class CausalMask:
    """Additive masks as views of one template."""

    def __init__(self, groups: int, dtype: torch.dtype, device: torch.device) -> None:
        self.groups, self.dtype, self.device = groups, dtype, device
        self._template = torch.empty(0, 0, dtype=dtype, device=device)

    def view(self, queries: int, keys: int) -> Tensor:
        """`[queries * groups, keys]`: query i sees the keys up to `keys - queries + i`."""
        if self._template.shape[1] < keys:
            self._template = self._build(1 << (keys - 1).bit_length())
        return self._template[(BLOCK - queries) * self.groups :, self._template.shape[1] - keys :]

    def _build(self, width: int) -> Tensor:
        last_key = torch.arange(BLOCK * self.groups, device=self.device) // self.groups + width - BLOCK
        hidden = torch.arange(width, device=self.device)[None, :] > last_key[:, None]
        return torch.zeros(hidden.shape, dtype=self.dtype, device=self.device).masked_fill_(hidden, -torch.inf)


@dataclass(frozen=True, eq=False)
class ExactViews:
    """One call for each piece, over views of exactly its keys. `masks[i]` belongs to `pieces[i]`."""

    pieces: Sequence[Piece]
    masks: Sequence[Tensor | None]
    groups: int

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
        query, key, value = query[None], key.transpose(0, 1)[None], value.transpose(0, 1)[None]
        outputs = [
            scaled_dot_product_attention(
                query[:, :, piece.start * self.groups : piece.stop * self.groups],
                key[:, :, piece.kv_start : piece.kv_stop],
                value[:, :, piece.kv_start : piece.kv_stop],
                attn_mask=mask,
                scale=scaling,
            )
            for piece, mask in zip(self.pieces, self.masks, strict=True)
        ]
        return torch.cat(outputs, dim=2)[0]


@dataclass(frozen=True, eq=False)
class Group:
    """Pieces of like size, padded. `queries [N, n * groups]`, `keys [N, L]`: indices; `mask [N, 1, n * groups, L]`."""

    queries: Tensor
    keys: Tensor
    mask: Tensor

    @staticmethod
    def of(pieces: Sequence[Piece], groups: int, device: torch.device) -> "Group":
        """Padding repeats a piece's first query, and its first key hidden: unwritten arena tokens may be NaN."""
        start, kv_start, n, length, causal = (
            torch.tensor(column, device=device)[:, None]
            for column in zip(*((p.start, p.kv_start, p.queries, p.keys, p.causal) for p in pieces), strict=True)
        )  # [N, 1] each
        i = torch.arange(int(n.max()), device=device)[None, :]  # [1, n]
        j = torch.arange(int(length.max()), device=device)[None, :]  # [1, L]
        inner = torch.arange(groups, device=device)
        i = torch.where(i < n, i, 0)  # [N, n]
        rows = (start + i)[:, :, None] * groups + inner  # [N, n, groups]
        last = torch.where(causal, length - n + i, length - 1)  # [N, n]: the last key a query sees
        mask = (j[:, None, :] <= last[:, :, None]).repeat_interleave(groups, 1)[:, None]
        return Group(rows.flatten(1), torch.where(j < length, kv_start + j, kv_start), mask)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
        """`[kv_heads, N * n * groups, d]`, padding included."""
        picked = query[:, self.queries].transpose(0, 1)  # [N, kv_heads, n * groups, d]
        keys, values = key[self.keys].transpose(1, 2), value[self.keys].transpose(1, 2)  # [N, kv_heads, L, d]
        output = scaled_dot_product_attention(picked, keys, values, attn_mask=self.mask, scale=scaling)
        return output.transpose(0, 1).flatten(1, 2)


@dataclass(frozen=True, eq=False)
class PaddedGroups:
    """One call for each group of pieces of one power of two; `order [T * groups]` undoes the padding."""

    members: Sequence[Group]
    order: Tensor

    @staticmethod
    def of(pieces: Sequence[Piece], groups: int, device: torch.device) -> "PaddedGroups":
        buckets: dict[tuple[int, int], list[Piece]] = defaultdict(list)
        for piece in pieces:
            buckets[(piece.queries - 1).bit_length(), (piece.keys - 1).bit_length()].append(piece)
        members = [Group.of(own, groups, device) for own in buckets.values()]
        rows = torch.cat([group.queries.flatten() for group in members])
        order = rows.new_empty(pieces[-1].stop * groups)
        order[rows] = torch.arange(len(rows), device=device)
        return PaddedGroups(members, order)

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
        outputs = [group.attend(query, key, value, scaling) for group in self.members]
        return torch.cat(outputs, dim=1)[:, self.order]
