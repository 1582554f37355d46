"""PEFT's LoRA adapters on q and v of a plain base: r = 8, random."""

import warnings
from typing import Any

from peft import LoraConfig, get_peft_model

from cdvft_server.bench.padded import Plain

__all__ = ["lora_names", "wrap"]

RANK = 8


def lora_names(count: int) -> list[str]:
    return [f"lora{number}" for number in range(count)]


def wrap(plain: Plain, count: int, generates: bool) -> None:
    """Puts `count` adapters of these names into the base's own layers."""
    projections = plain.backbone.info.family.projections
    config: dict[str, Any] = {"target_modules": [projections["q"], projections["v"]], "init_lora_weights": False}
    first, *others = lora_names(count)
    kind = "CAUSAL_LM" if generates else None
    own = LoraConfig(r=RANK, lora_alpha=2 * RANK, task_type=kind, **config)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        wrapped = get_peft_model(plain.wrapped, own, adapter_name=first)
        for name in others:
            wrapped.add_adapter(name, own)
    wrapped.requires_grad_(False).eval()
    plain.wrapped = wrapped
