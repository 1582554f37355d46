"""From text to token ids, the same for training and serving. The tokenizer is handed in and never reconfigured, so that
threads can share it: truncation is done here, not by the tokenizer's own mutable setting.

A classification input is what the tokenizer's own template makes of one text or of a pair, for encoders and decoders
alike (BERT: `[CLS] A [SEP] B [SEP]`; LLaMA: `<s> A`, `<s> A <s> B`).

A text may be far longer than a limit on its tokens: of such a text only a beginning is tokenised, to the same result.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cdvft.errors import InvalidData

__all__ = ["Encoded", "encode_chat", "encode_classification", "encode_completion", "encode_document", "encode_prompt"]

MARGIN = 512  # characters behind a token, not counting space next to it, that surely cannot change it


@dataclass(frozen=True)
class Encoded:
    """One classification input. `type_ids` (as long as `ids`) only where the base has more than one token type."""

    ids: list[int]
    type_ids: list[int] | None
    truncated: bool


def encode_classification(
    tokenizer: Any, text: str, text2: str | None = None, *, max_length: int, truncate: bool, type_vocab_size: int
) -> Encoded:
    """One text or a pair with its special tokens, at most `max_length` tokens.

    Too long: tokens are cut from the longer text first, special tokens stay; without `truncate` InvalidData names
    length and limit. `type_vocab_size` is the base config's (1 where it has none).
    """
    encoding, whole = _encode_start(tokenizer, text, text2, max_length, truncate)
    ids = list(encoding.ids)
    types = _has_types(tokenizer, type_vocab_size)
    if not ids:
        raise InvalidData("the input has no tokens; give a text")
    if len(ids) <= max_length:
        return Encoded(ids, list(encoding.type_ids) if types else None, False)
    if not truncate and not whole:
        size = len(text) + len(text2 or "")
        raise InvalidData(f"the input's {size} characters are more than {max_length} tokens; shorten or truncate it")
    if not truncate:
        raise InvalidData(f"the input has {len(ids)} tokens, at most {max_length} are allowed; shorten or truncate it")
    kept = _kept_positions(encoding.sequence_ids, max_length, tokenizer.truncation_side == "left")
    return Encoded([ids[k] for k in kept], [encoding.type_ids[k] for k in kept] if types else None, True)


def encode_prompt(tokenizer: Any, prompt: str, *, most: int | None = None) -> list[int]:
    """The tokenizer's special tokens before the text, and the text; what its template puts after it is left out.

    A prompt that is seen to have more than `most` tokens before it was read to its end is InvalidData; one that had to
    be read to its end may have more.
    """
    if not prompt:
        raise InvalidData("the prompt is empty; give at least one character")
    _refuse_more(tokenizer, prompt, most, "the prompt's")
    encoding = _encode(tokenizer, prompt)
    end = max((k + 1 for k, part in enumerate(encoding.sequence_ids) if part is not None), default=0)
    if end == 0:
        raise InvalidData("the prompt has no tokens; give a text that the tokenizer knows")
    return list(encoding.ids[:end])


def encode_chat(tokenizer: Any, rendered: str, *, most: int | None = None) -> list[int]:
    """A rendered chat template as it stands: it has written its special tokens itself. `most` as in `encode_prompt`."""
    _refuse_more(tokenizer, rendered, most, "the rendered chat's")
    ids = _plain(tokenizer, rendered)
    if not ids:
        raise InvalidData("the rendered chat is empty; the template must write the messages")
    return ids


def encode_completion(tokenizer: Any, prompt: str, completion: str) -> tuple[list[int], int]:
    """(ids, number of prompt ids): the prompt exactly as `encode_prompt` gives it, the completion, one EOS."""
    start = encode_prompt(tokenizer, prompt)
    return [*start, *continuation(tokenizer, prompt, completion), _eos(tokenizer)], len(start)


def encode_document(tokenizer: Any, text: str) -> list[int]:
    """A whole text as `encode_prompt` gives it, and one EOS."""
    return [*encode_prompt(tokenizer, text), _eos(tokenizer)]


def continuation(tokenizer: Any, prompt: str, completion: str) -> list[int]:
    """The ids of `completion` as it follows `prompt`: a prefix space that the tokenizer puts before every text is not
    repeated, and the ids of the prompt stay what they are without a completion."""
    for left in (prompt, "\n", ".", "a"):
        before, joint = _plain(tokenizer, left), _plain(tokenizer, left + completion)
        if joint[: len(before)] == before:
            return joint[len(before) :]
    return _plain(tokenizer, completion)


def _encode(tokenizer: Any, text: str, text2: str | None = None, special: bool = True) -> Any:
    """A `tokenizers.Encoding`: ids, type_ids, sequence_ids (None for the template's tokens)."""
    for part in (text, text2 or ""):
        if not part.isascii():
            _refuse_surrogates(part)
    batch = tokenizer(text, text2, add_special_tokens=special, truncation=False, padding=False, verbose=False)
    if batch.encodings is None:
        raise InvalidData("the base's tokenizer has no tokenizer.json; save it with a fast tokenizer of transformers")
    return batch.encodings[0]


def _refuse_more(tokenizer: Any, text: str, most: int | None, whose: str) -> None:
    if most is not None and len(_start(tokenizer, text, most)) < len(text):
        raise InvalidData(f"{whose} {len(text)} characters are more than the {most} tokens allowed; shorten it")


def _encode_start(tokenizer: Any, text: str, text2: str | None, most: int, truncate: bool) -> tuple[Any, bool]:
    """An encoding as long as the whole one, or else of more than `most` tokens of which truncation keeps the same; and
    whether it is the whole one.
    """
    if truncate and tokenizer.truncation_side == "left":
        return _encode(tokenizer, text, text2), True
    start, start2 = _start(tokenizer, text, most), text2 and _start(tokenizer, text2, most)
    encoding, cut = _encode(tokenizer, start, start2), (start != text, start2 != text2)
    if not any(cut) or not truncate or text2 is None:
        return encoding, not any(cut)
    parts = encoding.sequence_ids
    counts = parts.count(0), parts.count(1)
    order_matters = (most - len(parts) + sum(counts)) % 2 == 1  # the longer text gets one token more
    if order_matters and (all(cut) or counts[cut.index(True)] <= counts[cut.index(False)]):
        return _encode(tokenizer, text, text2), True
    return encoding, False


def _start(tokenizer: Any, text: str, most: int) -> str:
    """`text`; or where it has more than `most` tokens, a beginning of it that has more too, the same first `most`.

    A token stands where MARGIN characters behind it were read: no token is that long, and what merges into a token, or
    swallows the space beside it, is as near. Tokens may stand for nothing that was written, or for very much of it, so
    that the length of a text says nothing by itself.
    """
    size = 4 * most + 2 * MARGIN
    while size < len(text):
        start = text[:size]
        encoding = _encode(tokenizer, start, special=False)
        place = encoding.token_to_chars(most - 1) if len(encoding.ids) > most else None
        if place is not None and len(start[place[1] :].lstrip()) >= MARGIN:
            return start
        size *= 2
    return text


def _refuse_surrogates(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidData(f"the text is not valid Unicode: a lone surrogate at character {error.start}") from None


def _plain(tokenizer: Any, text: str) -> list[int]:
    return list(_encode(tokenizer, text, special=False).ids)


def _eos(tokenizer: Any) -> int:
    if tokenizer.eos_token_id is None:
        raise InvalidData(
            "the base's tokenizer has no eos_token, which ends a completion; set it in tokenizer_config.json"
        )
    return int(tokenizer.eos_token_id)


def _has_types(tokenizer: Any, type_vocab_size: int) -> bool:
    return type_vocab_size > 1 and "token_type_ids" in tokenizer.model_input_names


def _kept_positions(parts: Sequence[int | None], max_length: int, from_left: bool) -> list[int]:
    """The positions that stay: all special tokens, and of the two texts as much as fits, the longer cut first."""
    places = [[k for k, part in enumerate(parts) if part == text] for text in (0, 1)]
    room = max_length - (len(parts) - len(places[0]) - len(places[1]))
    if room < 1:
        raise InvalidData(f"max_length {max_length} leaves no room for text beside the special tokens")
    kept = {k for k, part in enumerate(parts) if part is None}
    for place, count in zip(places, _shares(len(places[0]), len(places[1]), room), strict=True):
        kept.update(place[len(place) - count :] if from_left else place[:count])
    return sorted(kept)


def _shares(first: int, second: int, room: int) -> tuple[int, int]:
    """Lengths that sum to `room`: the shorter text whole if it has less than half, the longer the rest."""
    short, long = min(first, second), max(first, second)
    short = min(short, room // 2) if long > room - short else short
    long = room - short
    return (short, long) if first <= second else (long, short)
