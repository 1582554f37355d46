from contextlib import nullcontext, suppress
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any
from unittest.mock import patch

import pytest
from cdvft import formatting
from cdvft.errors import InvalidData
from cdvft.formatting import (
    MARGIN,
    encode_chat,
    encode_classification,
    encode_completion,
    encode_document,
    encode_prompt,
)
from hypothesis import assume, given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tests.tiny import tiny_bert, tiny_llama, tiny_roberta

BASES = {"bert": tiny_bert, "roberta": tiny_roberta, "llama": tiny_llama}
TYPES = {"bert": 2, "roberta": 1, "llama": 1}
texts = st.text(st.characters(codec="utf-8"), max_size=40)


@cache
def tokenizer(kind: str) -> Any:
    return AutoTokenizer.from_pretrained(BASES[kind](Path(mkdtemp()) / kind))


@cache
def prefixing_tokenizer() -> Any:
    """Puts a space before every text, as LLaMA's sentence pieces do, and merges it into words."""
    words = ["▁the", "▁cat", "cat", "▁"]
    vocab = {token: k for k, token in enumerate(["<s>", "</s>", *words, *map(chr, range(33, 127)), "\n"])}
    built = Tokenizer(models.WordPiece(vocab, unk_token="</s>", continuing_subword_prefix=""))
    built.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    built.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    built.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=built, bos_token="<s>", eos_token="</s>")


def encode(kind: str, text: str, text2: str | None = None, *, max_length: int = 96, truncate: bool = False) -> Any:
    return encode_classification(
        tokenizer(kind), text, text2, max_length=max_length, truncate=truncate, type_vocab_size=TYPES[kind]
    )


@given(st.sampled_from(sorted(BASES)), texts, st.none() | texts, st.integers(6, 60))
def test_truncation_equals_the_tokenizers_own_longest_first(
    kind: str, text: str, text2: str | None, limit: int
) -> None:
    ours = encode(kind, text, text2, max_length=limit, truncate=True)
    own = AutoTokenizer.from_pretrained(tokenizer(kind).name_or_path)  # its truncation setting is its own state
    theirs = own(text, text2, truncation="longest_first", max_length=limit)
    assert ours.ids == theirs["input_ids"]
    assert ours.type_ids == theirs.get("token_type_ids")
    whole = tokenizer(kind)(text, text2)["input_ids"]
    assert ours.truncated == (len(whole) > limit)
    if not ours.truncated:
        assert ours == encode(kind, text, text2, max_length=limit)


def test_too_long_names_length_and_limit() -> None:
    with pytest.raises(InvalidData, match="18 tokens, at most 12"):
        encode("llama", "x" * 17, max_length=12)
    with pytest.raises(InvalidData, match="max_length 2 leaves no room"):
        encode("bert", "cat", "dog", max_length=2, truncate=True)


def test_type_ids_only_where_the_base_has_them() -> None:
    assert encode("bert", "the cat", "a dog").type_ids == [0, 0, 0, 0, 1, 1, 1]
    assert encode("roberta", "the cat", "a dog").type_ids is None
    one_type = encode_classification(tokenizer("bert"), "the", "a", max_length=9, truncate=False, type_vocab_size=1)
    assert one_type.type_ids is None


def test_left_truncation_side_keeps_the_end() -> None:
    own = AutoTokenizer.from_pretrained(tokenizer("bert").name_or_path, truncation_side="left")
    ids = encode_classification(own, "a b c d", None, max_length=4, truncate=True, type_vocab_size=2).ids
    assert own.convert_ids_to_tokens(ids) == ["[CLS]", "c", "d", "[SEP]"]


def test_decoder_pairs_are_one_segment_with_the_tokenizers_own_template() -> None:
    ids = encode("llama", "ab", "cd").ids
    assert tokenizer("llama").convert_ids_to_tokens(ids) == ["<s>", "a", "b", "<s>", "c", "d"]


@given(texts.filter(bool), texts)
def test_a_completion_follows_exactly_the_prompt_that_the_server_feeds(prompt: str, completion: str) -> None:
    llama = tokenizer("llama")
    ids, length = encode_completion(llama, prompt, completion)
    assert ids[:length] == encode_prompt(llama, prompt) == llama(prompt)["input_ids"]
    assert ids.index(llama.eos_token_id) == len(ids) - 1
    assert llama.decode(ids[length:-1]) == completion


@pytest.mark.parametrize(
    ("prompt", "completion", "tokens"),
    [("the", " cat", ["▁cat"]), ("the ", "cat", ["cat"]), ("the:", "cat", ["cat"]), ("the", "\ncat", ["\n", "cat"])],
)
def test_a_prefix_space_is_not_repeated_before_the_completion(prompt: str, completion: str, tokens: list[str]) -> None:
    own = prefixing_tokenizer()
    ids, length = encode_completion(own, prompt, completion)
    assert ids[:length] == encode_prompt(own, prompt)
    assert own.convert_ids_to_tokens(ids[length:]) == [*tokens, "</s>"]
    assert own.decode(ids, skip_special_tokens=True) == f" {prompt}{completion}"


def test_a_prompt_has_no_eos_and_a_chat_no_special_tokens() -> None:
    own = prefixing_tokenizer()
    assert own("the")["input_ids"][-1] == own.eos_token_id
    assert own.convert_ids_to_tokens(encode_prompt(own, "the")) == ["<s>", "▁the"]
    assert own.convert_ids_to_tokens(encode_chat(own, "the cat")) == ["▁the", "▁cat"]
    assert own.convert_ids_to_tokens(encode_document(own, "the")) == ["<s>", "▁the", "</s>"]
    assert encode_chat(tokenizer("llama"), "<s>a") == tokenizer("llama")("a")["input_ids"]


def test_text_without_tokens_or_not_unicode_is_refused() -> None:
    llama = tokenizer("llama")
    for call in (lambda: encode_prompt(llama, ""), lambda: encode_chat(llama, "")):
        with pytest.raises(InvalidData, match="empty"):
            call()
    with pytest.raises(InvalidData, match="surrogate at character 1"):
        encode_prompt(llama, "a\ud800")
    with pytest.raises(InvalidData, match="surrogate"):
        encode("bert", "fine", "\udfff")


def test_without_an_eos_there_is_no_completion() -> None:
    own = PreTrainedTokenizerFast(tokenizer_object=tokenizer("llama").backend_tokenizer)
    with pytest.raises(InvalidData, match="no eos_token"):
        encode_completion(own, "a", "b")


UNITS = [
    "a",
    "the cat ",
    "goat",
    "\u0301",
    "é",
    " ",
    "\n\n",
    "<mask>",
    "[MASK]",
    "<s>",
    "🦊",
    "\x00",
    "\u200b",
    "?!",
    "x" * 97,
]
long_texts = st.lists(st.tuples(st.sampled_from(UNITS), st.sampled_from([1, 3, 50, 700])), min_size=1, max_size=6).map(
    lambda runs: "".join(unit * count for unit, count in runs)
)


@cache
def greedy_tokenizer() -> Any:
    """Merges pairs of letters, and has a token that takes the space on its left."""
    letters = [*"abcdefghijklmnopqrstuvwxyz<>?! \n"]
    merges = [("a", "a"), ("aa", "aa"), ("t", "h"), ("th", "e"), ("g", "o"), ("o", "a"), ("a", "t"), ("x", "x")]
    vocab = {token: k for k, token in enumerate(["<unk>", *letters, *(a + b for a, b in merges)])}
    built = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True))
    fast = PreTrainedTokenizerFast(tokenizer_object=built, unk_token="<unk>")
    fast.add_special_tokens({"mask_token": AddedToken("<mask>", lstrip=True, normalized=False)})
    return fast


def of_kind(kind: str) -> Any:
    return greedy_tokenizer() if kind == "greedy" else tokenizer(kind)


@given(st.sampled_from([*sorted(BASES), "greedy"]), long_texts, st.none() | long_texts, st.integers(6, 40))
def test_a_long_text_keeps_the_ids_it_has_when_all_of_it_is_read(
    kind: str, text: str, text2: str | None, limit: int
) -> None:
    own = of_kind(kind)
    assume(own(text, text2)["input_ids"])
    ours = encode_classification(own, text, text2, max_length=limit, truncate=True, type_vocab_size=1)
    with patch.object(formatting, "MARGIN", 1 << 40):
        assert ours == encode_classification(own, text, text2, max_length=limit, truncate=True, type_vocab_size=1)
    if ours.truncated:
        with pytest.raises(InvalidData, match=f"{limit} (tokens|are allowed)"):
            encode_classification(own, text, text2, max_length=limit, truncate=False, type_vocab_size=1)


@given(st.sampled_from([*sorted(BASES), "greedy"]), long_texts, st.integers(1, 40))
def test_a_prompt_is_refused_early_only_if_it_has_too_many_tokens(kind: str, text: str, most: int) -> None:
    own = of_kind(kind)
    count = len(own(text, add_special_tokens=False)["input_ids"])
    for encode_text in (encode_prompt, encode_chat):
        with suppress(InvalidData) if count > most or count == 0 else nullcontext():
            assert encode_text(own, text, most=most) == encode_text(own, text)


class Counting:
    """A tokenizer that counts the characters it is given."""

    def __init__(self, own: Any) -> None:
        self.own, self.read = own, 0

    def __call__(self, text: str, text2: str | None = None, **options: Any) -> Any:
        self.read += len(text) + len(text2 or "")
        return self.own(text, text2, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.own, name)


@pytest.mark.parametrize("kind", sorted(BASES))
@pytest.mark.parametrize("text", ["a " * (1 << 20), "a" * (2 << 20), "🦊" * (1 << 20)])
def test_of_a_text_far_too_long_little_is_read(kind: str, text: str) -> None:
    if kind == "bert" and " " not in text:
        pytest.skip("a word of any length is one token of a word-piece tokenizer")
    counting = Counting(tokenizer(kind))
    for call in (encode_prompt, encode_chat):
        with pytest.raises(InvalidData, match=f"{len(text)} characters are more than the 96 tokens"):
            call(counting, text, most=96)
    with pytest.raises(InvalidData, match=f"{len(text)} characters are more than 96 tokens"):
        encode_classification(counting, text, max_length=96, truncate=False, type_vocab_size=1)
    encode_classification(counting, text, max_length=96, truncate=True, type_vocab_size=1)
    encode_classification(counting, "short", text, max_length=96, truncate=True, type_vocab_size=1)
    assert counting.read < 20 * (4 * 96 + 2 * MARGIN)
