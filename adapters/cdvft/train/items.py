"""Rows to token ids and targets, and these to padded batches of similar lengths. Knows no model."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cdvft.errors import InvalidData
from cdvft.formatting import continuation, encode_chat, encode_classification, encode_completion, encode_document
from cdvft.templates import PLAIN_TEMPLATE, render
from cdvft.train.data import ClassifyRow, LmRow

__all__ = ["Batch", "Encoding", "Item", "classify_items", "lm_items", "ordered_batches", "shuffled_batches"]

WINDOW = 64  # batches: shuffled rows are sorted by length inside a window


@dataclass(frozen=True)
class Item:
    """One input. `target`: the label's index, the score, or for lm the position of the first token with a loss."""

    ids: list[int]
    type_ids: list[int] | None
    target: float


@dataclass
class Encoding:
    """Items of one file; how many inputs were cut, and how many lm rows had no room for their completion."""

    items: list[Item]
    truncated: int = 0
    skipped: int = 0


@dataclass(frozen=True)
class Batch:
    """`ids`, `type_ids` `[B, T]`, padded at the right; `lengths` `[B]`; the padding's ids are 0 and seen by nobody."""

    ids: Tensor
    type_ids: Tensor | None
    lengths: list[int]
    targets: list[float]

    @property
    def mask(self) -> Tensor | None:
        """`[B, T]`, 1 at real tokens; None where all are real."""
        if min(self.lengths) == self.ids.shape[1]:
            return None
        columns = torch.arange(self.ids.shape[1], device=self.ids.device)
        return (columns < torch.tensor(self.lengths, device=self.ids.device)[:, None]).long()


def classify_items(
    rows: Sequence[ClassifyRow], labels: Sequence[str] | None, tokenizer: Any, max_length: int, type_vocab_size: int
) -> Encoding:
    """`labels` in head order, None for scores. Raises InvalidData for a label that is not among them."""
    index = {label: k for k, label in enumerate(labels or ())}
    encoding = Encoding([])
    for row in rows:
        if row.label is not None and row.label not in index:
            raise InvalidData(f"{row.where}: no training row has the label {row.label!r}; known: {_some(index)}")
        target = index[row.label] if row.label is not None else row.score
        try:
            encoded = encode_classification(
                tokenizer,
                row.text,
                row.text2,
                max_length=max_length,
                truncate=True,
                type_vocab_size=type_vocab_size,
            )
        except InvalidData as error:
            raise InvalidData(f"{row.where}: {error}") from None
        encoding.truncated += encoded.truncated
        encoding.items.append(Item(encoded.ids, encoded.type_ids, float(target or 0)))
    return encoding


def lm_items(rows: Sequence[LmRow], tokenizer: Any, max_length: int, template: str | None = None) -> Encoding:
    """A text is learnt whole, in windows of `max_length` that overlap by one token; of a prompt with its completion,
    and of each assistant message with what stands before it, the completion and one EOS.

    `template` is the adapter's own; else the tokenizer's, else the plain one, as the server chooses.
    """
    encoding = Encoding([])
    for row in rows:
        try:
            if row.text is not None:
                ids = encode_document(tokenizer, row.text)
                starts = range(0, max(1, len(ids) - 1), max(1, max_length - 1))
                encoding.items += [Item(ids[start : start + max_length], None, 1) for start in starts]
            elif row.messages is not None:
                for ids, length in _turns(tokenizer, row.messages, template):
                    _add_completion(encoding, ids, length, max_length)
            else:
                ids, length = encode_completion(tokenizer, row.prompt or "", row.completion or "")
                _add_completion(encoding, ids, length, max_length)
        except InvalidData as error:
            raise InvalidData(f"{row.where}: {error}") from None
    return encoding


def _add_completion(encoding: Encoding, ids: list[int], prompt_length: int, max_length: int) -> None:
    if prompt_length >= max_length:
        encoding.skipped += 1
        return
    encoding.truncated += len(ids) > max_length
    encoding.items.append(Item(ids[:max_length], None, prompt_length))


def _turns(tokenizer: Any, messages: Sequence[dict[str, str]], template: str | None) -> Iterator[tuple[list[int], int]]:
    """(ids, prompt length) for every assistant message: the prompt as the server renders it, the answer, one EOS."""
    source = template or tokenizer.chat_template or PLAIN_TEMPLATE
    tokens = {"bos_token": tokenizer.bos_token, "eos_token": tokenizer.eos_token}
    for k, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompt = render(source, messages[:k], add_generation_prompt=True, **tokens)
        whole = render(source, messages[: k + 1], add_generation_prompt=False, **tokens)
        answer = whole[len(prompt) :] if whole.startswith(prompt) else message["content"]
        end = answer.find(tokenizer.eos_token) if tokenizer.eos_token else -1
        answer = answer[:end] if end >= 0 else answer.rstrip()
        start = encode_chat(tokenizer, prompt)
        eos = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
        yield [*start, *continuation(tokenizer, prompt, answer), *eos], len(start)


def shuffled_batches(items: Sequence[Item], size: int, seed: tuple[int, int], device: torch.device) -> Iterator[Batch]:
    """Every item once, in an order that `seed` (the run's, the epoch) decides; neighbours in length share a batch."""
    generator = random.Random(f"{seed[0]}/{seed[1]}")
    order = generator.sample(range(len(items)), len(items))
    batches = []
    for start in range(0, len(order), size * WINDOW):
        window = sorted(order[start : start + size * WINDOW], key=lambda k: len(items[k].ids))
        batches += [window[k : k + size] for k in range(0, len(window), size)]
    generator.shuffle(batches)
    for batch in batches:
        yield _collate([items[k] for k in batch], device)


def ordered_batches(items: Sequence[Item], size: int, device: torch.device) -> Iterator[Batch]:
    """Every item once, the longest first."""
    order = sorted(items, key=lambda item: -len(item.ids))
    for start in range(0, len(order), size):
        yield _collate(order[start : start + size], device)


def _collate(items: Sequence[Item], device: torch.device) -> Batch:
    lengths = [len(item.ids) for item in items]
    return Batch(
        _padded([item.ids for item in items], max(lengths), device),
        None if items[0].type_ids is None else _padded([item.type_ids or [] for item in items], max(lengths), device),
        lengths,
        [item.target for item in items],
    )


def _padded(rows: Sequence[list[int]], length: int, device: torch.device) -> Tensor:
    return torch.tensor([[*row, *[0] * (length - len(row))] for row in rows], device=device)


def _some(names: dict[str, int]) -> str:
    shown = ", ".join(list(names)[:10])
    return f"{shown}, ..." if len(names) > 10 else shown
