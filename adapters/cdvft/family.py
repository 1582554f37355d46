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
    and one linear layer), `relu` (DistilBERT's two layers), `score` (decoders). `pads_first`: positions begin behind
    the padding id, as RoBERTa's. `token_types`: the forward takes them.
    """

    model_type: str
    kind: Literal["encoder", "decoder"]
    prefixes: tuple[str, ...]
    projections: Mapping[str, str]
    standard_head: Literal["dense", "pooler", "relu", "score"]
    pads_first: bool = False
    token_types: bool = False

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

_DISTILBERT_PROJECTIONS = {"q": "q_lin", "k": "k_lin", "v": "v_lin", "o": "out_lin", "up": "lin1", "down": "lin2"}


def _roberta(model_type: str) -> Family:
    return Family(model_type, "encoder", ("roberta.",), _BERT_PROJECTIONS, "dense", pads_first=True, token_types=True)


def _llama(model_type: str) -> Family:
    return Family(model_type, "decoder", ("model.",), _LLAMA_PROJECTIONS, "score")


_EVERY = (
    _roberta("roberta"),
    _roberta("xlm-roberta"),
    _roberta("camembert"),
    Family("bert", "encoder", ("bert.",), _BERT_PROJECTIONS, "pooler", token_types=True),
    Family("distilbert", "encoder", ("distilbert.",), _DISTILBERT_PROJECTIONS, "relu"),
    _llama("llama"),
    _llama("mistral"),
    _llama("qwen2"),
    _llama("qwen3"),
    _llama("gemma"),
)
FAMILIES: Mapping[str, Family] = {family.model_type: family for family in _EVERY}


def family_of(model_type: object) -> Family:
    """The family of a config's `model_type`. Raises UnsupportedBase listing those served."""
    family = FAMILIES.get(model_type) if isinstance(model_type, str) else None
    if family is None:
        raise UnsupportedBase(f"model_type {model_type!r} is not served; served: {', '.join(FAMILIES)}")
    return family
