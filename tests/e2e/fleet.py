"""Random adapters of a decoder with their references: which text each digest must answer."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cdvft.backbone import Backbone
from cdvft.checkpoint import adapter_files
from cdvft.files import AdapterFiles, write_folder
from cdvft.formatting import encode_prompt

from tests.e2e.reference import greedy, merged_decoder
from tests.tiny import random_adapter

MAX_TOKENS = 48


@dataclass(frozen=True)
class Known:
    """An adapter's files, and the tokens that greedy decoding must give for each prompt."""

    digest: str
    files: AdapterFiles
    model: Any
    expected: dict[str, list[int]]


def known_adapters(backbone: Backbone, count: int, prompts: Sequence[str], folder: Path) -> list[Known]:
    """`count` random adapters of several shapes, each with the merged model's answers to the prompts."""
    made = []
    for seed in range(count):
        adapter = random_adapter(backbone.info, seed, scale=0.3, partition_size=(None, 32, 16)[seed % 3])
        files = adapter_files(adapter, backbone.info)
        write_folder(folder / str(seed), files)
        model = merged_decoder(backbone.path, backbone.info, folder / str(seed))
        expected = {prompt: answer(backbone, model, prompt) for prompt in prompts}
        made.append(Known(adapter.digest, files, model, expected))
    return made


def answer(backbone: Backbone, model: Any, prompt: str) -> list[int]:
    """Greedy tokens without the end token."""
    new = greedy(model, encode_prompt(backbone.tokenizer, prompt), MAX_TOKENS)
    return new[:-1] if new[-1] in backbone.eos_ids else new
