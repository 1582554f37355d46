"""What an answer should be: transformers' own model with the adapter's float64 dW added into its weights."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from cdvft.backbone import BaseInfo
from cdvft.checkpoint import read_adapter, read_folder
from transformers import AutoModelForCausalLM

NEAR_TIE = 1e-4
MOST_EXCUSED = 1e-4  # divergences at near ties, per position


def merged_decoder(base: Path, info: BaseInfo, adapter: Path | None) -> Any:
    """The whole causal model in fp32; `adapter` is a folder, None is the base itself."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval().requires_grad_(False)
    if adapter is not None:
        read = read_adapter(read_folder(adapter), info)
        for site in read.spec.sites:
            linear = model.model.get_submodule(site.name)
            linear.weight.copy_((linear.weight.double() + read.dense(site)).float())
    return model


def greedy(model: Any, ids: Sequence[int], max_tokens: int) -> list[int]:
    """The new tokens of `generate`, the end token included where there is one."""
    prompt = torch.tensor([list(ids)])
    config = deepcopy(model.generation_config)
    config.update(max_new_tokens=max_tokens, do_sample=False, pad_token_id=0)
    answer = model.generate(prompt, attention_mask=torch.ones_like(prompt), generation_config=config)
    return [int(token) for token in answer[0, len(ids) :]]


def float64_logits(model: Any, ids: Sequence[int]) -> torch.Tensor:
    """The next token's logits `[vocabulary]`, the whole forward in float64."""
    exact = deepcopy(model).double()
    with torch.no_grad():
        return exact(torch.tensor([list(ids)])).logits[0, -1]  # type: ignore[no-any-return]


def top_two_gap(model: Any, ids: Sequence[int]) -> float:
    best = float64_logits(model, ids).topk(2).values
    return float(best[0] - best[1])


@dataclass(frozen=True)
class Answer:
    """A served text beside the reference's new tokens for the same prompt, and the model that made those."""

    text: str
    expected: Sequence[int]
    prompt: Sequence[int]
    model: Any
    decode: Callable[[Sequence[int]], str]


@dataclass
class Comparison:
    """Counts positions compared and divergences excused; anything else is an error, kept with its place."""

    positions: int = 0
    excused: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def add(self, where: str, answer: Answer) -> None:
        """Compare a served text with the reference's tokens. A divergence is excused only at a near tie (float64)."""
        expected, text, decode = answer.expected, answer.text, answer.decode
        self.positions += len(expected)
        if text == decode(expected):
            return
        kept = next(k for k in range(len(expected), -1, -1) if text.startswith(decode(expected[:k]).rstrip("\ufffd")))
        gap = top_two_gap(answer.model, [*answer.prompt, *expected[:kept]])
        row = f"{where}: position {kept} of {len(expected)}, top two logits {gap:.2e} apart"
        (self.excused if gap < NEAR_TIE else self.wrong).append(row)

    def check(self) -> None:
        """Print what was excused; fail for anything wrong or for too much excused."""
        print(
            f"{self.positions} positions compared, {len(self.excused)} divergences at near ties",
            *self.excused,
            sep="\n  ",
        )
        assert not self.wrong, self.wrong
        assert len(self.excused) <= max(1, self.positions * MOST_EXCUSED)
