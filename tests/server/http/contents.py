"""Adapters that tell by their answer which one answered: the answer is transformers' own on merged weights."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from cdvft.adapter import Adapter
from cdvft.backbone import Backbone
from cdvft.checkpoint import AdapterFiles, adapter_files
from cdvft.formatting import encode_prompt

from tests.server.engine.reference import Decoder
from tests.tiny import random_adapter

PROMPT, TOKENS = "the cat", 8
CLEAR = 0.01  # between the two largest logits, at each of its tokens: no rounding makes it another
FIRST_TEXT_ID = 3  # of the tiny LLaMA


@dataclass(frozen=True)
class Content:
    """What can be uploaded, and what must be answered."""

    digest: str
    files: AdapterFiles
    text: str


def make_contents(base: Backbone, number: int) -> list[Content]:
    """No two answers are alike."""
    made: dict[str, Content] = {}
    for content in _contents(base):
        made.setdefault(content.text, content)
        if len(made) == number:
            break
    return list(made.values())


def asking(model: str, **fields: Any) -> dict[str, Any]:
    """The body of `/v1/completions` to which a content's text is the answer."""
    return {"model": model, "prompt": PROMPT, "max_tokens": TOKENS, "temperature": 0, "ignore_eos": True, **fields}


def _contents(base: Backbone) -> Iterator[Content]:
    decoder = Decoder(base.path)
    prompt = encode_prompt(base.tokenizer, PROMPT)
    for seed in count():
        adapter = random_adapter(base.info, seed)
        answer = decoder.greedy(prompt, adapter, TOKENS)
        if min(answer) >= FIRST_TEXT_ID and _is_clear(decoder, prompt, answer, adapter):
            yield Content(adapter.digest, adapter_files(adapter, base.info), base.tokenizer.decode(answer))


def _is_clear(decoder: Decoder, prompt: list[int], answer: list[int], adapter: Adapter) -> bool:
    logits = [decoder.logits(prompt + answer[:k], adapter) for k in range(len(answer))]
    best = torch.stack(logits).topk(2).values  # [tokens, 2]
    return bool((best[:, 0] - best[:, 1]).min() > CLEAR)
