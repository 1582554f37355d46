"""Named shapes of bases, for random weights. Imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["SHAPES", "Shape"]


@dataclass(frozen=True)
class Shape:
    """`fields` of the transformers config of `model_type`; `dtype` is that of the checkpoint."""

    model_type: Literal["roberta", "llama"]
    dtype: Literal["float32", "bfloat16"]
    fields: Mapping[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> Literal["encoder", "decoder"]:
        return "encoder" if self.model_type == "roberta" else "decoder"


def _sizes(width: int, mlp: int, layers: int, heads: int, **others: Any) -> dict[str, Any]:
    sizes = {"hidden_size": width, "intermediate_size": mlp, "num_hidden_layers": layers, "num_attention_heads": heads}
    return sizes | others


def _llama3(factor: float) -> dict[str, Any]:
    """What Llama 3.1 and 3.2 have in common, and how far their positions are stretched."""
    rope = {"rope_type": "llama3", "rope_theta": 500_000.0, "factor": factor, "low_freq_factor": 1.0}
    rope |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    return {
        "vocab_size": 128_256,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131_072,
        "rms_norm_eps": 1e-5,
        "rope_parameters": rope,
    }


SHAPES: Mapping[str, Shape] = {
    "roberta-base": Shape(
        "roberta",
        "float32",
        _sizes(768, 3072, 12, 12, vocab_size=50_265, max_position_embeddings=514, type_vocab_size=1),
    ),
    "llama-160m": Shape(
        "llama",
        "float32",
        _sizes(768, 3072, 12, 12, num_key_value_heads=12, vocab_size=32_000, max_position_embeddings=2048),
    ),
    "llama-1b": Shape("llama", "bfloat16", _sizes(2048, 8192, 16, 32, tie_word_embeddings=True, **_llama3(32.0))),
    "llama-8b": Shape("llama", "bfloat16", _sizes(4096, 14_336, 32, 32, tie_word_embeddings=False, **_llama3(8.0))),
}
"""llama-1b has the dimensions of Llama 3.2 1B, llama-8b those of Llama 3.1 8B."""
