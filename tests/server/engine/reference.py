"""transformers' own answers on merged weights: the oracle. It shares no code with the engine."""

from contextlib import nullcontext
from itertools import zip_longest
from pathlib import Path

import torch
from cdvft.adapter import Adapter
from cdvft.heads import head_logits, pool
from cdvft.merge import merge
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

TIE = 1e-4  # a greedy divergence is excused below this gap of the two largest float64 logits
COUNTS = {"positions": 0, "excused": 0}  # printed at the end of a test run


class Decoder:
    """A plain LLaMA in fp32 and in float64."""

    def __init__(self, folder: Path) -> None:
        self.fp32 = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.exact = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()

    @torch.no_grad()
    def greedy(self, prompt: list[int], adapter: Adapter | None, max_tokens: int, eos: int | None = None) -> list[int]:
        """Without the EOS token; without `eos`, exactly `max_tokens` tokens."""
        ids = torch.tensor([prompt])
        self.fp32.generation_config.eos_token_id = eos
        with merge(self.fp32.model, adapter) if adapter else nullcontext():
            out = self.fp32.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=max_tokens,
                pad_token_id=0,
            )
        answer = out[0, len(prompt) :].tolist()
        return answer[:-1] if eos is not None and answer[-1:] == [eos] else answer

    @torch.no_grad()
    def logits(self, tokens: list[int], adapter: Adapter | None) -> torch.Tensor:
        """Next-token logits `[vocabulary]` in float64."""
        with merge(self.exact.model, adapter) if adapter else nullcontext():
            return self.exact(torch.tensor([tokens]), use_cache=False).logits[0, -1]

    def assert_greedy(
        self, prompt: list[int], adapter: Adapter | None, answer: list[int], max_tokens: int, eos: int | None = None
    ) -> None:
        """Equal token for token; a divergence is excused at a near tie only, counted and printed."""
        expected = self.greedy(prompt, adapter, max_tokens, eos)
        COUNTS["positions"] += len(expected)
        if answer == expected:
            return
        pairs = zip_longest(answer, expected)
        step = next(i for i, (own, other) in enumerate(pairs) if own != other)
        top = self.logits(prompt + answer[:step], adapter).topk(2).values
        gap = float(top[0] - top[1])
        assert gap < TIE, f"step {step}: {answer} is not {expected}; the float64 gap is {gap:.3g}"
        COUNTS["excused"] += 1
        print(f"excused: step {step} after {prompt}: the float64 gap is {gap:.3g}")


class Encoder:
    """A plain encoder in fp32, run padded."""

    def __init__(self, folder: Path, pooler: bool) -> None:
        has_choice = AutoConfig.from_pretrained(folder).model_type != "distilbert"
        options = {"add_pooling_layer": pooler} if has_choice else {}
        self.model = AutoModel.from_pretrained(folder, dtype=torch.float32, **options).eval()
        self.pad = self.model.config.pad_token_id

    @torch.no_grad()
    def logits(
        self, rows: list[list[int]], adapter: Adapter, types: list[list[int]] | None = None
    ) -> list[list[float]]:
        """One padded batch for all rows of this adapter, then its head."""
        longest = max(map(len, rows))
        ids = torch.tensor([row + [self.pad] * (longest - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
        options = {}
        if types is not None:
            options["token_type_ids"] = torch.tensor([own + [0] * (longest - len(own)) for own in types])
        with merge(self.model, adapter):
            hidden = self.model(ids, attention_mask=mask, **options).last_hidden_state
        pooled = [pool(own[: len(row)], adapter.spec.head.pooling) for own, row in zip(hidden, rows, strict=True)]
        pooler = getattr(self.model, "pooler", None) if adapter.spec.head.type == "standard" else None
        return head_logits(adapter.spec.head, adapter.head, torch.stack(pooled), pooler).tolist()
