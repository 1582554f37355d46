from functools import cache
from itertools import pairwise
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
import torch
from cdvft.errors import InvalidData
from cdvft.formatting import encode_chat, encode_prompt
from cdvft.templates import PLAIN_TEMPLATE, render
from cdvft.train.data import ClassifyRow, LmRow
from cdvft.train.items import Item, classify_items, lm_items, ordered_batches, shuffled_batches
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from tests.tiny import tiny_bert, tiny_llama

CPU = torch.device("cpu")
CHAT = (
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "hello"},
    {"role": "user", "content": "again"},
    {"role": "assistant", "content": "bye"},
)


@cache
def llama() -> Any:
    return AutoTokenizer.from_pretrained(tiny_llama(Path(mkdtemp())))


@cache
def bert() -> Any:
    return AutoTokenizer.from_pretrained(tiny_bert(Path(mkdtemp())))


def learnt(item: Item) -> str:
    return llama().decode(item.ids[int(item.target) :])


@given(st.text("abc ", min_size=1, max_size=60), st.integers(2, 20))
def test_every_token_of_a_text_is_learnt_exactly_once(text: str, limit: int) -> None:
    items = lm_items([LmRow("f:1", text=text)], llama(), limit).items
    whole = [*encode_prompt(llama(), text), llama().eos_token_id]
    assert [i for item in items for i in item.ids[int(item.target) :]] == whole[1:]
    assert max(len(item.ids) for item in items) <= limit
    assert all(a.ids[-1] == b.ids[0] for a, b in pairwise(items))


def test_of_a_completion_only_itself_and_one_eos_is_learnt() -> None:
    encoding = lm_items([LmRow("f:1", prompt="Q: ", completion="yes")], llama(), 100)
    assert learnt(encoding.items[0]) == "yes</s>"
    assert encoding.items[0].ids[: int(encoding.items[0].target)] == encode_prompt(llama(), "Q: ")


def test_long_completions_are_cut_and_long_prompts_skipped_both_counted() -> None:
    rows = [LmRow("f:1", prompt="ab", completion="cdefgh"), LmRow("f:2", prompt="abcdefgh", completion="x")]
    encoding = lm_items(rows, llama(), 6)
    assert [learnt(item) for item in encoding.items] == ["cde"]
    assert (encoding.truncated, encoding.skipped) == (1, 1)


@pytest.mark.parametrize(
    ("template", "answers"),
    [
        (None, [" hello</s>", " bye</s>"]),
        (
            "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% if m.role == 'assistant' %}"
            "{{ eos_token }}{% endif %}\n{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}",
            ["hello</s>", "bye</s>"],
        ),
        ("{{ messages[-1].content }}{% if add_generation_prompt %}?{% endif %}", ["hello</s>", "bye</s>"]),
    ],
)
def test_each_assistant_message_follows_the_prompt_that_the_server_renders(
    template: str | None, answers: list[str]
) -> None:
    items = lm_items([LmRow("f:1", messages=CHAT)], llama(), 200, template).items
    assert [learnt(item) for item in items] == answers
    for item, before in zip(items, (CHAT[:1], CHAT[:3]), strict=True):
        prompt = render(template or PLAIN_TEMPLATE, before, bos_token="<s>", eos_token="</s>")
        assert item.ids[: int(item.target)] == encode_chat(llama(), prompt)


def test_errors_of_template_and_text_name_the_row() -> None:
    with pytest.raises(InvalidData, match=r"f:7: .*no system"):
        lm_items([LmRow("f:7", messages=CHAT)], llama(), 200, "{{ raise_exception('no system') }}")
    with pytest.raises(InvalidData, match=r"f:8: .*surrogate"):
        lm_items([LmRow("f:8", text="\ud800")], llama(), 200)


def test_classification_items_and_a_label_that_training_lacks() -> None:
    rows = [ClassifyRow("f:1", "the cat", "a dog", "yes", None), ClassifyRow("f:2", "a " * 20, None, "no", None)]
    encoding = classify_items(rows, ["no", "yes"], bert(), 10, 2)
    assert [item.target for item in encoding.items] == [1, 0]
    assert encoding.items[0].type_ids == [0, 0, 0, 0, 1, 1, 1]
    assert encoding.truncated == 1
    with pytest.raises(InvalidData, match="f:1: no training row has the label 'yes'; known: no, maybe"):
        classify_items(rows, ["no", "maybe"], bert(), 10, 2)


@given(st.lists(st.integers(1, 12), min_size=1, max_size=80), st.integers(1, 9), st.integers(0, 3))
def test_batches_hold_every_item_once_and_mask_their_padding(lengths: list[int], size: int, seed: int) -> None:
    items = [Item([k + 1] * length, [1] * length, k) for k, length in enumerate(lengths)]
    for batches in (list(shuffled_batches(items, size, (seed, 1), CPU)), list(ordered_batches(items, size, CPU))):
        assert sorted(target for batch in batches for target in batch.targets) == list(range(len(items)))
        assert len(batches) == -(-len(items) // size)
        for batch in batches:
            mask = torch.ones_like(batch.ids) if batch.mask is None else batch.mask
            assert mask.sum(1).tolist() == batch.lengths == [lengths[int(k)] for k in batch.targets]
            assert torch.equal(batch.ids, mask * (torch.tensor(batch.targets).long()[:, None] + 1))
            assert batch.type_ids is not None
            assert torch.equal(batch.type_ids, mask)


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    items = [Item([1] * (k % 7 + 1), None, k) for k in range(300)]

    def order(seed: int, epoch: int) -> list[float]:
        return [target for batch in shuffled_batches(items, 4, (seed, epoch), CPU) for target in batch.targets]

    assert order(0, 1) == order(0, 1)
    assert order(0, 1) != order(0, 2)
    assert order(0, 1) != order(1, 1)


def test_neighbours_in_length_share_a_batch() -> None:
    items = [Item([1] * (k * 37 % 64 + 1), None, k) for k in range(512)]
    padded = sum(batch.ids.numel() for batch in shuffled_batches(items, 8, (0, 1), CPU))
    assert padded < 1.05 * sum(len(item.ids) for item in items)
