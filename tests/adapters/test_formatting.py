from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
from cdvft.errors import InvalidData
from cdvft.formatting import encode_chat, encode_classification, encode_completion, encode_document, encode_prompt
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, processors
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
