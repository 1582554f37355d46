"""From hidden states to a head's outputs: pooled chunk by chunk, then all rows together, in fp32."""

from collections.abc import Iterable
from collections.abc import Sequence as AbstractSequence

import torch
from cdvft.heads import head_logits
from cdvft.methods.base import Tensors
from torch import Tensor, nn

from cdvft_server.engine.batch import Segment, Sequence
from cdvft_server.engine.pool import Head

__all__ = ["ScoringError", "accumulate", "head_of", "score"]

STACKED_BYTES = 1 << 17  # of one head: up to here copying the heads of a batch side by side is cheaper than many calls

Outcome = list[float] | Exception


class ScoringError(ArithmeticError):
    """A head's outputs are not finite."""


def head_of(sequence: Sequence) -> Head:
    """The head that a scoring sequence was admitted with."""
    lease = sequence.request.lease
    if lease is None or lease.head is None:
        raise RuntimeError(f"request {sequence.request.id} has no head")
    return lease.head


@torch.inference_mode()
def accumulate(segments: AbstractSequence[Segment], hidden: Tensor) -> None:
    """Take each segment's share of the batch's hidden states `[T, hidden]` into `sequence.pooled` `[hidden]`: first,
    last, or mean, which is a sum until the sequence's last chunk."""
    averaged = []
    for segment in segments:
        pooling, sequence = head_of(segment.sequence).spec.pooling, segment.sequence
        if pooling == "mean":
            averaged.append(segment)
        elif pooling == "first" and segment.past == 0:
            sequence.pooled = hidden[segment.start].float().clone()
        elif pooling == "last" and segment.completes:
            sequence.pooled = hidden[segment.stop - 1].float()
    for segment, own in zip(averaged, _sums(averaged, hidden), strict=True):
        sequence = segment.sequence
        total = own if sequence.pooled is None else sequence.pooled + own
        sequence.pooled = total / len(sequence.tokens) if segment.completes else total


def _sums(segments: AbstractSequence[Segment], hidden: Tensor) -> Tensor:
    """Over each segment's tokens, `[len(segments), hidden]` fp32."""
    owner = [k for k, segment in enumerate(segments) for _ in range(segment.length)]
    tokens = [t for segment in segments for t in range(segment.start, segment.stop)]
    picked = (
        hidden if len(tokens) == len(hidden) else hidden[torch.tensor(tokens, dtype=torch.int64, device=hidden.device)]
    )
    sums = torch.zeros(len(segments), hidden.shape[1], device=hidden.device)
    return sums.index_add_(0, torch.tensor(owner, dtype=torch.int64, device=hidden.device), picked.float())


def score(sequences: AbstractSequence[Sequence], pooler: nn.Module | None) -> list[Outcome]:
    """Each sequence's outputs. Heads of one shape are one bmm over all their rows, but large ones on the CPU, where one
    adapter's rows are one product; an adapter whose head fails fails its rows only."""
    groups: dict[object, list[int]] = {}
    for i, sequence in enumerate(sequences):
        head = head_of(sequence)
        groups.setdefault(_shape(head) if _stacks(head.tensors) else id(head), []).append(i)
    results: dict[int, Outcome] = {}
    for own in groups.values():
        results |= zip(own, _score_group([sequences[i] for i in own], pooler), strict=True)
    return [results[i] for i in range(len(sequences))]


def _shape(head: Head) -> object:
    return head.spec, tuple((name, tensor.shape) for name, tensor in head.tensors.items())


def _stacks(tensors: Tensors) -> bool:
    sizes = [tensor.numel() * tensor.element_size() for tensor in tensors.values()]
    return next(iter(tensors.values())).is_cuda or sum(sizes) <= STACKED_BYTES


@torch.inference_mode()
def _score_group(sequences: list[Sequence], pooler: nn.Module | None) -> list[Outcome]:
    """All of one head, or of several of one shape."""
    try:
        heads = [head_of(sequence) for sequence in sequences]
        pooled = torch.stack([s.pooled for s in sequences if s.pooled is not None])  # [N, hidden]
        one = all(head is heads[0] for head in heads)
        tensors = heads[0].tensors if one else _side_by_side(head.tensors for head in heads)
        logits = head_logits(heads[0].spec, tensors, pooled, pooler)
        finite = torch.isfinite(logits).all(-1).tolist()
        rows = logits.tolist()
    except Exception as error:
        if len(sequences) == 1:
            return [error]
        return [result for sequence in sequences for result in _score_group([sequence], pooler)]
    broken = ScoringError("the head's output is not finite for this input")
    return [row if ok else broken for row, ok in zip(rows, finite, strict=True)]


def _side_by_side(heads: Iterable[Tensors]) -> Tensors:
    """`[N, ...]` of each tensor."""
    found = list(heads)
    return {name: torch.stack([tensors[name] for tensors in found]) for name in found[0]}
