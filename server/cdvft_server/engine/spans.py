"""Attention of decode steps in Triton, over KV spans whose places stand in device memory: one launch for any lengths.

Token t of key head h sees arena tokens `[start[t], start[t] + length[t])`: `softmax(scale q k^T) v`, summed online in
fp32. A sequence's keys are cut into a fixed number of parts, each one program's, and a second kernel adds the parts; so
a long context costs its longest part, not its length, and short ones a launch that finds little to do.

The products run on the tensor cores in TF32, which holds bf16 and fp16 exactly; fp32 takes three of them. It has run
under Triton's interpreter and been compiled for sm_90, never run on a GPU: no speed is known. Importing this module
imports triton: ask `cdvft_server.engine.capture` first. The oracle is float64 in tests/server/engine/graph_cases.py.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["KEYS", "SpanAttention", "attend_kernel", "padded", "parts_of", "precision"]

ENOUGH = 256  # programs that keep the SMs busy
MOST_PARTS = 16
KEYS = 32  # of a program's step
LEAST = 16  # the shortest side that the tensor cores take


def padded(size: int) -> int:
    """A side of a tile: a power of two."""
    return max(LEAST, 1 << (size - 1).bit_length())


def parts_of(tokens: int, kv_heads: int, arena: int) -> int:
    """Into how many parts a span is cut: as many as keep the SMs busy, no more than the longest span has steps."""
    return max(1, min(ENOUGH // (tokens * kv_heads), MOST_PARTS, -(-arena // KEYS)))


def precision(single: bool) -> str:
    """How `tl.dot` multiplies: what was bf16 or fp16 is exact in TF32, fp32 takes three products."""
    return "tf32x3" if single else "tf32"


@dataclass(frozen=True, eq=False)
class SpanAttention:
    """A `Kernel` of decode steps: `start`, `length [T]` int64 on the device are read at each call, and may change
    between the replays of a recording. Lengths are at least 1."""

    start: Tensor
    length: Tensor

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
        """`query [kv_heads, T * groups, d]`, `key`, `value [S, kv_heads, d]` -> like `query`."""
        kv_heads, rows, d = query.shape
        tokens = len(self.start)
        groups, parts = rows // tokens, parts_of(tokens, kv_heads, len(key))
        sums = query.new_empty((parts, kv_heads, rows, d), dtype=torch.float32)
        tops, weights = query.new_empty((2, parts, kv_heads, rows), dtype=torch.float32)
        output = torch.empty_like(query)
        sizes = {"groups": groups, "GROUPS": padded(groups), "d": d, "D": padded(d)}
        scale = d**-0.5 if scaling is None else scaling
        with torch.cuda.device_of(query):  # Triton launches on the thread's current device
            attend_kernel[tokens, kv_heads, parts](
                *(query, key, value, self.start, self.length, sums, tops, weights),
                *(rows, parts, scale, query.stride(0), key.stride(0), value.stride(0)),
                **sizes,
                KEYS=KEYS,
                PRECISION=precision(query.dtype == torch.float32),
            )
            add_parts_kernel[tokens, kv_heads](sums, tops, weights, output, rows, parts, output.stride(0), **sizes)
        return output


# compiled once, whatever the batch
@triton.jit(do_not_specialize=["rows", "parts", "q_head"], do_not_specialize_on_alignment=["start_ptr", "length_ptr"])
def attend_kernel(
    q_ptr, k_ptr, v_ptr, start_ptr, length_ptr, sums_ptr, tops_ptr, weights_ptr,
    rows, parts, scale, q_head, k_token, v_token,
    groups: tl.constexpr, GROUPS: tl.constexpr, d: tl.constexpr, D: tl.constexpr,
    KEYS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One program: one part of a token's keys, all query heads of one key head. Leaves `sum(w v)`, the largest score
    and `sum(w)` with `w = exp(score - largest)`; of a part without keys 0, -inf, 0."""
    token, head, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    g, e = tl.arange(0, GROUPS), tl.arange(0, D)
    inside = (g < groups)[:, None] & (e < d)[None, :]
    row = token * groups + g
    q = tl.load(q_ptr + head * q_head + row[:, None] * d + e[None, :], mask=inside, other=0.0).to(tl.float32)
    start = tl.load(start_ptr + token)
    length = tl.load(length_ptr + token).to(tl.int32)
    share = tl.cdiv(tl.cdiv(length, parts), KEYS) * KEYS
    first = part * share
    stop = tl.minimum(first + share, length)
    top = tl.full([GROUPS], -float("inf"), dtype=tl.float32)
    weight = tl.zeros([GROUPS], dtype=tl.float32)
    total = tl.zeros([GROUPS, D], dtype=tl.float32)
    for n in range(first, stop, KEYS):
        index = n + tl.arange(0, KEYS)
        kept = index < stop
        place = start + index  # int64: an arena may hold more than 2^31 numbers
        there = kept[:, None] & (e < d)[None, :]  # what is not there is not read: unwritten arena tokens may be NaN
        k = tl.load(k_ptr + place[:, None] * k_token + head * d + e[None, :], mask=there, other=0.0).to(tl.float32)
        score = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale  # [GROUPS, KEYS]
        score = tl.where(kept[None, :], score, -float("inf"))
        higher = tl.maximum(top, tl.max(score, axis=1))  # finite: the step has a key
        faded = tl.exp(top - higher)
        w = tl.exp(score - higher[:, None])
        v = tl.load(v_ptr + place[:, None] * v_token + head * d + e[None, :], mask=there, other=0.0).to(tl.float32)
        total = total * faded[:, None] + tl.dot(w, v, input_precision=PRECISION)
        weight = weight * faded + tl.sum(w, axis=1)
        top = higher
    at = (part * tl.num_programs(1) + head) * rows + row
    tl.store(sums_ptr + at.to(tl.int64)[:, None] * d + e[None, :], total, mask=inside)
    tl.store(tops_ptr + at, top, mask=g < groups)
    tl.store(weights_ptr + at, weight, mask=g < groups)


@triton.jit(do_not_specialize=["rows", "parts", "o_head"])
def add_parts_kernel(
    sums_ptr, tops_ptr, weights_ptr, output_ptr, rows, parts, o_head,
    groups: tl.constexpr, GROUPS: tl.constexpr, d: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """One program: one token, one key head. Each part is faded to the largest score of all."""
    token, head = tl.program_id(0), tl.program_id(1)
    g, e = tl.arange(0, GROUPS), tl.arange(0, D)
    real = g < groups
    inside = real[:, None] & (e < d)[None, :]
    row = token * groups + g
    step = tl.num_programs(1) * rows
    at = head * rows + row
    top = tl.load(tops_ptr + at, mask=real, other=0.0)
    for part in range(1, parts):
        top = tl.maximum(top, tl.load(tops_ptr + part * step + at, mask=real, other=0.0))
    weight = tl.zeros([GROUPS], dtype=tl.float32)
    total = tl.zeros([GROUPS, D], dtype=tl.float32)
    for part in range(parts):
        place = part * step + at
        faded = tl.exp(tl.load(tops_ptr + place, mask=real, other=0.0) - top)
        weight += faded * tl.load(weights_ptr + place, mask=real, other=1.0)
        sums = tl.load(sums_ptr + place.to(tl.int64)[:, None] * d + e[None, :], mask=inside, other=0.0)
        total += faded[:, None] * sums
    result = total / weight[:, None]
    tl.store(
        output_ptr + head * o_head + row[:, None] * d + e[None, :],
        result.to(output_ptr.dtype.element_ty),
        mask=inside,
    )
