"""What a base's config may ask of attention and positions; the packed forward implements this and nothing else."""

from collections.abc import Callable, Mapping
from typing import Any

from cdvft.backbone import Backbone
from cdvft.errors import UnsupportedBase

__all__ = ["refuse_unsupported"]

ROPE_TYPES = ("default", "linear", "llama3")
# any key with one of these in its name changes attention, positions or the layers' arithmetic
SENSITIVE = (
    "window softcap rope rotary alibi position attention attn causal layer_types multiplier scal qk_ sink expert moe "
    "quantization cross chunk is_decoder is_encoder_decoder"
).split()
# of those, what the model's own code honours and packing leaves alone
HARMLESS = frozenset(
    "num_attention_heads max_position_embeddings attention_bias attention_dropout attention_probs_dropout_prob "
    "attn_implementation _flash_attn_2_enabled rope_theta max_window_layers decoder_start_token_id".split()
)


def refuse_unsupported(backbone: Backbone, context_length: int) -> None:
    """Raises UnsupportedBase naming the first key, and its value, that the packed forward does not implement."""
    config = backbone.config.to_dict()
    rules = _rules(backbone.info.family.kind, context_length)
    for key, value in config.items():
        if key in HARMLESS or not any(word in key for word in SENSITIVE):
            continue
        if key == "sliding_window" and config.get("use_sliding_window") is False:
            continue
        accepts, expected = rules.get(key, (_neutral, "unset"))
        if not accepts(value):
            raise UnsupportedBase(
                f"config.json: {key} = {value!r} is not served; for {config['model_type']} it must be {expected}"
            )


def _rules(kind: str, context: int) -> Mapping[str, tuple[Callable[[Any], bool], str]]:
    """What sensitive keys may say; the others must be unset."""
    window = (
        (lambda value: not value or (type(value) is int and value >= context)),
        f"unset or at least the served context of {context} tokens",
    )
    causal = kind == "decoder"
    return {
        "rope_parameters": (_rope, f"of rope_type {', '.join(ROPE_TYPES)} over the whole head"),
        "rope_scaling": (_rope, f"of type {', '.join(ROPE_TYPES)} over the whole head"),
        "sliding_window": window,
        "attention_window": window,
        "use_sliding_window": (lambda value: True, ""),  # sliding_window itself is checked
        "layer_types": (lambda value: not value or set(value) == {"full_attention"}, "full_attention in every layer"),
        "is_causal": (lambda value: value is None or value is causal, str(causal)),
        "position_embedding_type": (lambda value: causal or value in (None, "absolute"), "absolute"),
    }


def _rope(value: Any) -> bool:
    if not value:
        return True
    kind = value.get("rope_type", value.get("type", "default"))
    return kind in ROPE_TYPES and value.get("partial_rotary_factor") in (None, 1)


def _neutral(value: Any) -> bool:
    return value in (None, False, "", [], {}) or (type(value) is float and value == 1.0)
