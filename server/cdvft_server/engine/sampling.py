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


TOGETHER = 1 << 15  # logits that are drawn from at once: more do not stay in a processor's cache


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
    if not _cuts(params, len(weights)):
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
    if not bool(torch.isfinite(logits.max())):
        raise _not_finite()
    if params.temperature == 0:
        return int(logits.argmax())
    total = probabilities(logits, params).cumsum(-1)
    index = int(torch.searchsorted(total, draw(params.seed, step) * total[-1], right=True))
    return min(index, int((total < total[-1]).sum()))  # a draw next to 1 must not step past the last kept token


def sample_rows(logits: Tensor, params: Sequence[SamplingParams], steps: Sequence[int]) -> list[int | Exception]:
    """`sample` for each row of `[R, V]`, the same tokens; rows that are greedy share their passes, and so do rows that
    nothing is cut from. A row that fails gives its error."""
    best, greedy = (column.tolist() for column in logits.max(dim=-1))
    tokens: list[int | Exception] = list(greedy)
    size, few = logits.shape[-1], max(TOGETHER // logits.shape[-1], 1)
    plain: list[int] = []
    if any(own.temperature for own in params):
        logits = logits.cpu()
    for i, own in enumerate(params):
        if not abs(best[i]) < float("inf"):
            tokens[i] = _not_finite()
        elif own.temperature > 0 and (few == 1 or _cuts(own, size)):
            tokens[i] = _sample_row(logits[i], own, steps[i])
        elif own.temperature > 0:
            plain.append(i)
    for start in range(0, len(plain), few):
        rows = plain[start : start + few]
        try:
            found: Sequence[int | Exception] = _draw_rows(logits[rows], rows, params, steps)
        except Exception:
            found = [_sample_row(logits[i], params[i], steps[i]) for i in rows]
        for i, token in zip(rows, found, strict=True):
            tokens[i] = token
    return tokens


def _sample_row(logits: Tensor, params: SamplingParams, step: int) -> int | Exception:
    try:
        return sample(logits, params, step)
    except Exception as error:  # of whatever kind: other rows have their tokens
        return error


def _draw_rows(
    logits: Tensor, rows: Sequence[int], params: Sequence[SamplingParams], steps: Sequence[int]
) -> list[int]:
    """`sample` without a cut, of finite logits `[R, V]`: every operation is one row's own, in the same order."""
    scaled = logits.double()
    temperatures = torch.tensor([params[i].temperature for i in rows], dtype=torch.float64)
    scaled = (scaled - scaled.amax(-1, keepdim=True)) / temperatures[:, None]
    total = torch.softmax(scaled, dim=-1).cumsum(-1)
    whole = total[:, -1:]
    draws = torch.tensor([draw(params[i].seed, steps[i]) for i in rows], dtype=torch.float64)
    index = torch.searchsorted(total, draws[:, None] * whole, right=True)
    last = torch.searchsorted(total, whole.contiguous())  # as many sums as are below the last one
    return torch.minimum(index, last)[:, 0].tolist()


def _cuts(params: SamplingParams, size: int) -> bool:
    return 0 < params.top_k < size or params.top_p < 1


def _not_finite() -> SamplingError:
    return SamplingError("the model's output is not finite for this request")
