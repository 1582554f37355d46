"""Detokenising as text grows, and stop strings: against decoding the whole, and against str.find."""

from typing import Any

import pytest
from cdvft_server.text import Detokenizer, StopStrings
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers

from tests.tiny import _byte_tokenizer

BYTES = _byte_tokenizer(["<s>", "</s>"])


def _spaced() -> Tokenizer:
    """Like LLaMA's: a space before each word is part of it, and bytes stand for what the vocabulary lacks."""
    words = ["▁", "a", "b", "▁a", "▁b", "ab", "▁ab", "é"]
    vocab = {
        token: i for i, token in enumerate(["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *words])
    }
    tokenizer = Tokenizer(models.BPE(vocab, [("▁", "a"), ("▁", "b")], unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<s>", "</s>"])
    return tokenizer


class _Decoder:
    """The face of transformers' tokenizers."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def decode(self, ids: list[int], skip_special_tokens: bool, clean_up_tokenization_spaces: bool) -> str:
        assert not clean_up_tokenization_spaces
        return self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)


SPACED = _spaced()
TOKENIZERS = {"bytes": BYTES, "spaced": SPACED}
texts = st.text(st.sampled_from("ab é€🦊\n") | st.characters(exclude_categories=["Cs"]), max_size=40)


def pieces(tokenizer: Tokenizer, ids: list[int], context: list[int] | None = None) -> list[str]:
    detokenizer = Detokenizer(_Decoder(tokenizer), context or [])
    return [*(detokenizer.push(token) for token in ids), detokenizer.flush()]


@pytest.mark.parametrize("name", TOKENIZERS)
@given(text=texts)
def test_pieces_are_the_whole(name: str, text: str) -> None:
    tokenizer = TOKENIZERS[name]
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    parts = pieces(tokenizer, ids)
    assert "".join(parts) == tokenizer.decode(ids)
    if "\ufffd" not in text:
        assert not any("\ufffd" in part for part in parts)


@pytest.mark.parametrize("name", TOKENIZERS)
@given(prompt=texts.filter(bool), text=texts)
def test_after_a_prompt_they_are_its_continuation(name: str, prompt: str, text: str) -> None:
    tokenizer = TOKENIZERS[name]
    before = tokenizer.encode(prompt, add_special_tokens=False).ids
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    expected = tokenizer.decode(before + ids)[len(tokenizer.decode(before)) :]
    assert "".join(pieces(tokenizer, ids, before[-16:])) == expected


@given(ids=st.lists(st.integers(2, 257), max_size=60))
def test_any_bytes_come_out_as_text(ids: list[int]) -> None:
    """Never half a character that a later token would have completed: what is certain stays what it was."""
    parts = pieces(BYTES, ids)
    for part in parts:
        part.encode("utf-8")
    whole = BYTES.decode(ids)
    assert "".join(parts).replace("\ufffd", "") == whole.replace("\ufffd", "")


@pytest.mark.parametrize("name", TOKENIZERS)
@given(text=texts, other=st.lists(st.integers(0, 261), max_size=30), context=st.lists(st.integers(3, 261), max_size=6))
def test_whole_is_what_the_pieces_are(name: str, text: str, other: list[int], context: list[int]) -> None:
    """Of text, and of any ids: bytes that are no character, special tokens, a context that ends within one."""
    tokenizer = TOKENIZERS[name]
    own = tokenizer.encode(text, add_special_tokens=False).ids
    size = tokenizer.get_vocab_size()
    other, context = [i % size for i in other], [i % size for i in context]
    for ids in (own, other, own + other, other + own):
        assert Detokenizer(_Decoder(tokenizer), context).whole(ids) == "".join(pieces(tokenizer, ids, context))


def test_special_tokens_have_no_text_and_change_no_space() -> None:
    ids = [SPACED.token_to_id(token) for token in ("▁a", "</s>", "▁b", "<s>", "<s>", "▁a")]
    assert "".join(pieces(SPACED, ids)) == "a b a"


def test_a_character_is_held_back_until_it_is_whole() -> None:
    ids = BYTES.encode("🦊", add_special_tokens=False).ids
    assert pieces(BYTES, ids) == ["", "", "", "🦊", ""]


def test_bytes_that_never_become_a_character_do_not_wait_for_ever() -> None:
    fox = BYTES.encode("🦊", add_special_tokens=False).ids[:1]
    detokenizer = Detokenizer(_Decoder(BYTES))
    assert any(detokenizer.push(token) for token in fox * 40)


small = st.text("ab", max_size=12)


@given(parts=st.lists(small, max_size=8), stops=st.lists(st.text("ab", min_size=1, max_size=5), max_size=4))
def test_the_text_ends_before_the_first_stop_that_is_complete(parts: list[str], stops: list[str]) -> None:
    """Whatever the pieces are; and what came out before is never taken back."""
    matcher = StopStrings(stops)
    whole, out = "".join(parts), ""
    for part in parts:
        out += matcher.push(part)
        assert not any(stop in out for stop in stops)
    out += matcher.flush()
    ends = [(whole.find(stop) + len(stop), -len(stop)) for stop in stops if stop in whole]
    assert matcher.stopped == bool(ends)
    end, length = min(ends, default=(len(whole), 0))
    assert out == whole[: end + length]


@given(parts=st.lists(small, max_size=8), stops=st.lists(st.text("ab", min_size=1, max_size=5), min_size=1, max_size=4))
def test_only_what_may_begin_a_stop_is_held_back(parts: list[str], stops: list[str]) -> None:
    matcher = StopStrings(stops)
    seen = out = ""
    for part in parts:
        out += matcher.push(part)
        seen += part
        if matcher.stopped:
            return
        beginnings = [stop[:k] for stop in stops for k in range(1, len(stop)) if seen.endswith(stop[:k])]
        assert out == seen[: len(seen) - max(map(len, beginnings), default=0)]


def test_a_very_long_stop_string_costs_nothing() -> None:
    """The text decides how far it is looked at: linear in the text, not in the stop string."""
    matcher: Any = StopStrings(["a" * 5_000_000 + "b"])
    for _ in range(200):
        matcher.push("a" * 50 + "c")
    assert len(matcher._matchers[0]._failure) <= 51
