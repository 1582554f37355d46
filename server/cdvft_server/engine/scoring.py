"""From hidden states to a head's outputs: pooled chunk by chunk, then all rows of one adapter together, in fp32."""

from collections.abc import Sequence as AbstractSequence

import torch
from cdvft.heads import head_logits
from torch import Tensor, nn

from cdvft_server.engine.batch import Segment, Sequence
from cdvft_server.engine.pool import Head

__all__ = ["ScoringError", "accumulate", "head_of", "score"]


class ScoringError(ArithmeticError):
    """A head's outputs are not finite."""


def head_of(sequence: Sequence) -> Head:
    """The head that a scoring sequence was admitted with."""
    lease = sequence.request.lease
    if lease is None or lease.head is None:
        raise RuntimeError(f"request {sequence.request.id} has no head")
    return lease.head


def accumulate(segment: Segment, hidden: Tensor) -> None:
    """Take one segment's hidden states `[length, hidden]` into `sequence.pooled` `[hidden]`: first, last or mean."""
    sequence = segment.sequence
    pooling = head_of(sequence).spec.pooling
    if pooling == "mean":
        total = hidden.float().sum(0)
        total = total if sequence.pooled is None else sequence.pooled + total
        sequence.pooled = total / len(sequence.tokens) if segment.completes else total
    elif pooling == "first" and segment.past == 0:
        sequence.pooled = hidden[0].float().clone()
    elif pooling == "last" and segment.completes:
        sequence.pooled = hidden[-1].float()


def score(sequences: AbstractSequence[Sequence], pooler: nn.Module | None) -> list[list[float] | Exception]:
    """Each sequence's outputs, one adapter's rows in one product; an adapter whose head fails fails its rows only."""
    groups: dict[int, list[int]] = {}
    for i, sequence in enumerate(sequences):
        groups.setdefault(id(head_of(sequence)), []).append(i)
    results: dict[int, list[float] | Exception] = {}
    for own in groups.values():
        results |= zip(own, _score_adapter([sequences[i] for i in own], pooler), strict=True)
    return [results[i] for i in range(len(sequences))]


@torch.inference_mode()
def _score_adapter(sequences: list[Sequence], pooler: nn.Module | None) -> list[list[float] | Exception]:
    head = head_of(sequences[0])
    try:
        pooled = torch.stack([s.pooled for s in sequences if s.pooled is not None])  # [N, hidden]
        logits = head_logits(head.spec, head.tensors, pooled, pooler)
        finite = torch.isfinite(logits).all(-1).tolist()
        rows = logits.tolist()
    except Exception as error:
        return [error] * len(sequences)
    broken = ScoringError("the head's output is not finite for this input")
    return [row if ok else broken for row, ok in zip(rows, finite, strict=True)]
