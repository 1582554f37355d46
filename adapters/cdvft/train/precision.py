"""Mixed precision: matrix products of the frozen base in bfloat16, everything that trains in float32."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from cdvft.backbone import Backbone

__all__ = ["has_fast_bfloat16", "mixed_precision"]

ATTENTION = "cdvft_float32_sdpa"


def has_fast_bfloat16(device: torch.device) -> bool:
    """Does the processor multiply bfloat16 matrices itself, rather than emulate it?"""
    if device.type == "cpu":
        able = torch.cpu.get_capabilities()
        return bool(able.get("avx512_bf16") or able.get("amx_bf16") or able.get("bf16"))
    return device.type == "cuda" and torch.cuda.is_bf16_supported()


@contextmanager
def mixed_precision(backbone: Backbone, *, enabled: bool) -> Iterator[None]:
    """Inside, a forward runs under autocast to bfloat16. On the CPU attention stays in float32, where PyTorch's
    backward pass in bfloat16 is slow (docs/decisions.md).
    """
    if not enabled:
        yield
        return
    config, device = backbone.model.config, backbone.device.type
    before = config._attn_implementation
    try:
        if device == "cpu":
            config._attn_implementation = ATTENTION
        with torch.autocast(device, dtype=torch.bfloat16):
            yield
    finally:
        config._attn_implementation = before


def _float32_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any
) -> Any:
    with torch.autocast(query.device.type, enabled=False):
        sdpa = ALL_ATTENTION_FUNCTIONS["sdpa"]
        if mask is not None and mask.is_floating_point():
            mask = mask.float()
        return sdpa(module, query.float(), key.float(), value.float(), mask, **options)


ALL_ATTENTION_FUNCTIONS.register(ATTENTION, _float32_attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(ATTENTION, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
