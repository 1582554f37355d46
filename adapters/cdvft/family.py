"""The model families that the packed forward serves: their names for things."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from cdvft.errors import UnsupportedBase

__all__ = ["FAMILIES", "Family", "family_of"]


@dataclass(frozen=True)
class Family:
    """`prefixes` may stand before a site's name in a checkpoint; `projections` maps short target names to module names.

    `standard_head` is the architecture's own sequence classifier: `dense` (RoBERTa), `pooler` (BERT: the base's pooler
    and one linear layer), `score` (decoders).
    """

    model_type: str
    kind: Literal["encoder", "decoder"]
    prefixes: tuple[str, ...]
    projections: Mapping[str, str]
    standard_head: Literal["dense", "pooler", "score"]

    @property
    def standard_pooling(self) -> Literal["first", "last"]:
        return "last" if self.kind == "decoder" else "first"

    @property
    def linear_pooling(self) -> Literal["mean", "last"]:
        return "last" if self.kind == "decoder" else "mean"

    def strip(self, module: str) -> str:
        """A module path without the family prefix: the site's name."""
        for prefix in self.prefixes:
            if module.startswith(prefix):
                return module[len(prefix) :]
        return module


_BERT_PROJECTIONS = {"q": "query", "k": "key", "v": "value", "o": "attention.output.dense"}
_BERT_PROJECTIONS |= {"up": "intermediate.dense"}
_LLAMA_PROJECTIONS = {short: f"{short}_proj" for short in ("q", "k", "v", "o", "gate", "up", "down")}

FAMILIES: Mapping[str, Family] = {
    "roberta": Family("roberta", "encoder", ("roberta.",), _BERT_PROJECTIONS, "dense"),
    "bert": Family("bert", "encoder", ("bert.",), _BERT_PROJECTIONS, "pooler"),
    "llama": Family("llama", "decoder", ("model.",), _LLAMA_PROJECTIONS, "score"),
}


def family_of(model_type: object) -> Family:
    """The family of a config's `model_type`. Raises UnsupportedBase listing those served."""
    family = FAMILIES.get(model_type) if isinstance(model_type, str) else None
    if family is None:
        raise UnsupportedBase(f"model_type {model_type!r} is not served; served: {', '.join(FAMILIES)}")
    return family
