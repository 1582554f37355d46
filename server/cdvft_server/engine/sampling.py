"""From logits to a token, for one request at a time: nothing here knows what else is in the batch.

Everything is float64 and reproducible from outside:

* `draw(seed, step)`: the first 8 bytes (little endian) of BLAKE2b-64 over seed and step, each as 8 bytes little endian
  (seed modulo 2^64), shifted right by 11, times 2^-53: uniform on [0, 1).
* `probabilities`: softmax(logits / temperature); only the `top_k` largest stay, ties go to the smaller id; of those,
  renormalised and in descending order (ties by id), the shortest prefix whose sum reaches `top_p`.
* `sample`: the cumulative sum runs over token ids in ascending order; the token is the first whose sum exceeds
  `draw * total`. Temperature 0 is the largest logit, ties to the smaller id.
"""

import hashlib
import struct
from collections.abc import Sequence

import torch
from torch import Tensor

from cdvft_server.engine.batch import SamplingParams

__all__ = ["SamplingError", "draw", "probabilities", "sample", "sample_rows"]


class SamplingError(ArithmeticError):
    """Logits that are not numbers: this request cannot go on."""


def draw(seed: int, step: int) -> float:
    """The uniform number in [0, 1) that picks token number `step` (from 0) of a request."""
    digest = hashlib.blake2b(struct.pack("<QQ", seed % 2**64, step), digest_size=8).digest()
    return int(int.from_bytes(digest, "little") >> 11) * 2.0**-53


def probabilities(logits: Tensor, params: SamplingParams) -> Tensor:
    """`[V]` float64, not renormalised after the cut: what `top_k` and `top_p` remove is 0. Needs temperature > 0."""
    scaled = logits.double()
    scaled = (scaled - scaled.max()) / params.temperature  # the largest is 0: no overflow at small temperatures
    weights = torch.softmax(scaled, dim=-1)
    if not 0 < params.top_k < len(weights) and params.top_p >= 1:
        return weights
    kept = _kept(logits, weights, params)
    return torch.zeros_like(weights).index_copy_(0, kept, weights[kept])


def _kept(logits: Tensor, weights: Tensor, params: SamplingParams) -> Tensor:
    """Ids that `top_k` and `top_p` leave, the largest logit first."""
    if 0 < params.top_k < len(logits):
        ids = _largest(logits, params.top_k)
        return ids[: _prefix(weights[ids], params.top_p * float(weights[ids].sum()))]
    needed = params.top_p * float(weights.sum())
    for count in (256, 4096, len(logits)):  # a few tokens usually hold the mass
        ids = _largest(logits, count)
        if float(weights[ids].sum()) >= needed:
            break
    return ids[: _prefix(weights[ids], needed)]


def _largest(logits: Tensor, count: int) -> Tensor:
    """Ids of the `count` largest, in descending order, ties by id; a full sort costs 30 times as much."""
    if count >= len(logits):
        return torch.sort(logits, descending=True, stable=True).indices
    candidates = (logits >= logits.topk(count).values[-1]).nonzero()[:, 0]  # ascending ids, ties included
    return candidates[torch.sort(logits[candidates], descending=True, stable=True).indices[:count]]


def _prefix(weights: Tensor, needed: float) -> int:
    """Length of the shortest prefix whose sum reaches `needed`; all if none does."""
    return int((weights.cumsum(-1) < needed).sum()) + 1


def sample(logits: Tensor, params: SamplingParams, step: int) -> int:
    """Token number `step` (from 0) of an answer from its logits `[V]`. Raises SamplingError if they are not finite."""
    _check(bool(torch.isfinite(logits.max())))
    if params.temperature == 0:
        return int(logits.argmax())
    total = probabilities(logits, params).cumsum(-1)
    index = int(torch.searchsorted(total, draw(params.seed, step) * total[-1], right=True))
    return min(index, int((total < total[-1]).sum()))  # a draw next to 1 must not step past the last kept token


def sample_rows(logits: Tensor, params: Sequence[SamplingParams], steps: Sequence[int]) -> list[int | Exception]:
    """`sample` for each row of `[R, V]`; greedy rows share one pass. A row that fails gives its error."""
    best, greedy = (column.tolist() for column in logits.max(dim=-1))
    return [
        _sample_row(logits[i], own, step, best[i], greedy[i])
        for i, (own, step) in enumerate(zip(params, steps, strict=True))
    ]


def _sample_row(logits: Tensor, params: SamplingParams, step: int, best: float, greedy: int) -> int | Exception:
    try:
        _check(abs(best) < float("inf"))
        return greedy if params.temperature == 0 else sample(logits.cpu(), params, step)
    except Exception as error:  # of whatever kind: other rows have their tokens
        return error


def _check(finite: bool) -> None:
    if not finite:
        raise SamplingError("the model's output is not finite for this request")
