"""Keys and values of all running sequences: one arena, one contiguous span for each, reserved at admission."""

from bisect import bisect_left
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["KvArena", "Span", "SpanAllocator"]


@dataclass(frozen=True, order=True)
class Span:
    """Arena tokens `[start, stop)`."""

    start: int
    length: int

    @property
    def stop(self) -> int:
        return self.start + self.length


class SpanAllocator:
    """First fit over a sorted list of free spans; neighbours coalesce. Not thread-safe: the engine thread's own."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.used = 0  # tokens reserved now
        self._free = [Span(0, size)] if size else []
        self._taken: set[Span] = set()

    @property
    def free_spans(self) -> list[Span]:
        return list(self._free)

    def can_reserve(self, length: int, below: int | None = None) -> bool:
        """Whether so many contiguous tokens are free, of the arena's first `below` (None: of all)."""
        end = self.size if below is None else below
        return any(min(span.stop, end) - span.start >= length for span in self._free)

    def reserve(self, length: int, below: int | None = None) -> Span:
        """The lowest `length` contiguous tokens. Raises ValueError where `can_reserve` says no."""
        end = self.size if below is None else below
        if length < 1:
            raise ValueError(f"a span has at least one token, not {length}")
        for i, free in enumerate(self._free):
            if min(free.stop, end) - free.start >= length:
                rest = Span(free.start + length, free.length - length)
                self._free[i : i + 1] = [rest] if rest.length else []
                span = Span(free.start, length)
                self._taken.add(span)
                self.used += length
                return span
        raise ValueError(f"no {length} contiguous tokens are free; ask can_reserve first")

    def free(self, span: Span) -> None:
        """Give a reserved span back. Raises ValueError for one that is not reserved."""
        if span not in self._taken:
            raise ValueError(f"{span} is not reserved")
        self._taken.remove(span)
        self.used -= span.length
        i = bisect_left(self._free, span)
        start, stop = span.start, span.stop
        if i < len(self._free) and self._free[i].start == stop:
            stop = self._free.pop(i).stop
        if i > 0 and self._free[i - 1].stop == start:
            i -= 1
            start = self._free.pop(i).start
        self._free.insert(i, Span(start, stop - start))


class KvArena(SpanAllocator):
    """`keys[layer]` and `values[layer]`: `[size + 1, kv_heads, head_dim]`; token `size` is nobody's, for the padding of
    recorded batches. Memory is touched only as it is written."""

    def __init__(
        self, size: int, *, layers: int, kv_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__(size)
        shape = (size + 1, kv_heads, head_dim)
        self.keys: list[Tensor] = [torch.empty(shape, dtype=dtype, device=device) for _ in range(layers)]
        self.values: list[Tensor] = [torch.empty(shape, dtype=dtype, device=device) for _ in range(layers)]

    @staticmethod
    def token_bytes(layers: int, kv_heads: int, head_dim: int, dtype: torch.dtype) -> int:
        """Bytes of one token, keys and values of all layers."""
        return 2 * layers * kv_heads * head_dim * dtype.itemsize
