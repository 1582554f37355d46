"""Recorders for a machine without a GPU: the function is called again on the same tensors, where a graph repeats it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class ExactSpans:
    """The oracle of spans.py: token by token in float64, over what `start` and `length` say at the call."""

    start: Tensor
    length: Tensor

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        groups = query.shape[1] // len(self.start)
        answers = []
        for t, (start, length) in enumerate(zip(self.start.tolist(), self.length.tolist(), strict=True)):
            own = query[:, t * groups : (t + 1) * groups].double()  # [kv_heads, groups, d]
            keys, values = (x[start : start + length].double().transpose(0, 1) for x in (key, value))
            answers.append((own @ keys.transpose(1, 2) * scale).softmax(-1) @ values)
        return torch.cat(answers, dim=1).to(query.dtype)


class CallAgain:
    """Results are written into the tensors of the first call, and garbage into those of all other recordings, as a
    shared pool may do: who keeps results instead of copying them, or inputs that are not filled, is found out."""

    def __init__(self, attention: Callable[[Tensor, Tensor], object] = ExactSpans) -> None:
        self.attention = attention
        self.whole = True
        self.recorded = 0
        self._results: list[tuple[Tensor, ...]] = []

    def intact(self) -> bool:
        return self.whole

    def record(self, function: Callable[[], tuple[Tensor, ...]]) -> Callable[[], tuple[Tensor, ...]]:
        function()
        results = tuple(torch.full_like(result, torch.nan) for result in function())
        self._results.append(results)
        self.recorded += 1

        def repeat() -> tuple[Tensor, ...]:
            fresh = function()
            for other in self._results:
                for result in other:
                    result.fill_(torch.nan)
            for result, new in zip(results, fresh, strict=True):
                result.copy_(new)
            return results

        return repeat
