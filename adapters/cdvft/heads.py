"""An adapter's own classifier or regressor on top of the base's last hidden states; any number of outputs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor
from torch.nn import functional

from cdvft.errors import UnsupportedBase
from cdvft.family import Family

__all__ = ["HeadSpec", "head_logits", "head_shapes", "init_head", "pool"]

Pooling = Literal["mean", "first", "last"]


@dataclass(frozen=True)
class HeadSpec:
    """`type` linear: one matrix; standard: the architecture's own classifier. `outputs` is 1 for regression."""

    type: Literal["standard", "linear"]
    pooling: Pooling
    outputs: int


def head_shapes(head: HeadSpec, family: Family, hidden: int) -> dict[str, tuple[int, ...]]:
    """Tensor names (as on disk after `base_model.model.`) and shapes."""
    if head.type == "linear" or family.standard_head == "pooler":
        return {"classifier.weight": (head.outputs, hidden), "classifier.bias": (head.outputs,)}
    if family.standard_head == "score":
        return {"score.weight": (head.outputs, hidden)}
    if family.standard_head == "relu":
        return {
            "pre_classifier.weight": (hidden, hidden),
            "pre_classifier.bias": (hidden,),
            "classifier.weight": (head.outputs, hidden),
            "classifier.bias": (head.outputs,),
        }
    return {
        "classifier.dense.weight": (hidden, hidden),
        "classifier.dense.bias": (hidden,),
        "classifier.out_proj.weight": (head.outputs, hidden),
        "classifier.out_proj.bias": (head.outputs,),
    }


def init_head(head: HeadSpec, family: Family, hidden: int, generator: Generator) -> dict[str, Tensor]:
    """Weights N(0, 0.02^2), biases zero, fp32."""
    return {
        name: torch.randn(shape, generator=generator) * 0.02 if name.endswith("weight") else torch.zeros(shape)
        for name, shape in head_shapes(head, family, hidden).items()
    }


def pool(hidden: Tensor, pooling: Pooling) -> Tensor:
    """One segment's hidden states `[T, hidden]` to `[hidden]`, fp32; mean takes all tokens, special ones included."""
    if pooling == "mean":
        return hidden.float().mean(0)
    return hidden[0 if pooling == "first" else -1].float()


def head_logits(
    head: HeadSpec, tensors: Mapping[str, Tensor], pooled: Tensor, pooler: torch.nn.Module | None = None
) -> Tensor:
    """`pooled [N, hidden]` -> `[N, outputs]`, fp32. `tensors` are one head's, or N heads' side by side, `[N, ...]`,
    each for its own row.

    `pooler` is BERT's own, used by its standard head alone; UnsupportedBase where that head finds none.
    """
    pooled = pooled.float()
    if "classifier.dense.weight" in tensors:
        dense = _affine(pooled, tensors["classifier.dense.weight"], tensors["classifier.dense.bias"])
        return _affine(torch.tanh(dense), tensors["classifier.out_proj.weight"], tensors["classifier.out_proj.bias"])
    if "score.weight" in tensors:
        return _affine(pooled, tensors["score.weight"])
    if "pre_classifier.weight" in tensors:
        dense = _affine(pooled, tensors["pre_classifier.weight"], tensors["pre_classifier.bias"])
        pooled = torch.relu(dense)
    elif head.type == "standard":
        if pooler is None:
            raise UnsupportedBase("the standard head needs the base's pooler, which it does not have")
        dense = _affine(pooled, pooler.dense.weight.float(), pooler.dense.bias.float())  # type: ignore[union-attr, arg-type]
        pooled = torch.tanh(dense)
    return _affine(pooled, tensors["classifier.weight"], tensors["classifier.bias"])


def _affine(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x [N, d]`; `weight [o, d]` for all rows, or `[N, o, d]`: each row's own."""
    if weight.dim() == 2:
        return functional.linear(x, weight, bias)
    y = torch.bmm(weight, x.unsqueeze(-1)).squeeze(-1)
    return y if bias is None else y + bias
