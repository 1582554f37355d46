"""The same work by transformers and PEFT: padded batches, and one adapter after another."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from cdvft.backbone import Backbone
from torch import Tensor

from cdvft_server.bench.loads import Load

__all__ = ["Plain", "padded_over_real"]


class Plain:
    """A base of its own, with transformers' attention. `wrapped` is PEFT's model around it, once there is one."""

    def __init__(self, backbone: Backbone, generates: bool) -> None:
        self.backbone = backbone
        self.wrapped: Any = whole_model(backbone) if generates else backbone.model

    @torch.inference_mode()
    def run(self, load: Load, **options: Any) -> None:
        """One padded forward pass, or one padded `generate` of as many new tokens for every row."""
        ids, mask = padded(load.prompts, self._pad, self.backbone.device, left=load.sampling is not None)
        if load.sampling is None:
            # no pooler's output, no logits: what the engine computes before a head
            cache = {"use_cache": False} if self.backbone.info.family.kind == "decoder" else {}
            self.wrapped(input_ids=ids, attention_mask=mask, **cache, **options)
            return
        tokens = load.sampling.max_tokens
        lengths = {"max_new_tokens": tokens, "min_new_tokens": tokens}
        plain = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        self.wrapped.generate(input_ids=ids, attention_mask=mask, pad_token_id=self._pad, **lengths, **plain, **options)

    def run_each(self, load: Load, names: Sequence[str], activate: Callable[[str], None]) -> None:
        """One pass for each name, with the rows that have it."""
        for name in dict.fromkeys(names):
            activate(name)
            self.run(Load([ids for ids, own in zip(load.prompts, names, strict=True) if own == name], load.sampling))

    @property
    def _pad(self) -> int:
        return self.backbone.config.pad_token_id or 0


def whole_model(backbone: Backbone) -> Any:
    """The decoder with its lm_head, as transformers loads it."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(backbone.path, dtype=backbone.dtype)
    return model.requires_grad_(False).eval().to(backbone.device)


def padded(prompts: Sequence[list[int]], pad: int, device: torch.device, *, left: bool) -> tuple[Tensor, Tensor]:
    """Ids and attention mask, `[N, longest]` each."""
    longest = max(map(len, prompts))
    fills = [longest - len(ids) for ids in prompts]
    rows = [([pad] * fill, ids) for fill, ids in zip(fills, prompts, strict=True)]
    masks = [([0] * fill, [1] * len(ids)) for fill, ids in zip(fills, prompts, strict=True)]
    joined = [[a + b if left else b + a for a, b in own] for own in (rows, masks)]
    ids, mask = (torch.tensor(own, device=device) for own in joined)
    return ids, mask


def padded_over_real(loads: Sequence[Load]) -> float:
    """Tokens of the padded batches over those that the prompts have."""
    whole = sum(max(map(len, load.prompts)) * len(load.prompts) for load in loads)
    return round(whole / sum(len(ids) for load in loads for ids in load.prompts), 3)
