"""From token ids to text as it grows, and stop strings in it. Knows neither requests nor the engine."""

from collections.abc import Sequence
from typing import Any

__all__ = ["Detokenizer", "StopStrings"]

_REPLACEMENT = "\ufffd"
_MOST_HELD = 16  # tokens that may wait for the rest of a character; more are no character


class Detokenizer:
    """Text of one answer, piece by piece; the pieces joined are the whole, and none ends within a character.

    `context` are the last ids before the answer: they decide on a space at its beginning, and are not part of it.
    Special tokens have no text.
    """

    def __init__(self, tokenizer: Any, context: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        starts = (list(context[start:]) for start in range(len(context)))
        whole = (ids for ids in starts if _REPLACEMENT not in self._decode(ids))
        self._known = next(whole, [])  # ids whose text is out, from the beginning of a character
        self._held: list[int] = []  # ids whose text is not

    def push(self, token: int) -> str:
        """The text that this token completes, "" while a character is incomplete."""
        self._held.append(token)
        return self._take(final=len(self._held) > _MOST_HELD)

    def flush(self) -> str:
        """What is left at the end, as replacement characters where it is no text."""
        return self._take(final=True) if self._held else ""

    def whole(self, ids: Sequence[int]) -> str:
        """What pushing these one by one gives together, and a `flush`; before any was pushed.

        Decoded at once, where every character of it is one: an incomplete one looks different to a decoder that sees
        it from elsewhere.
        """
        text = self._decode(self._known + list(ids))[len(self._decode(self._known)) :]
        return text if _REPLACEMENT not in text else "".join([*map(self.push, ids), self.flush()])

    def _take(self, final: bool) -> str:
        before = self._decode(self._known)
        text = self._decode(self._known + self._held)[len(before) :]
        if not final and (not text or text.endswith(_REPLACEMENT)):
            return ""
        self._known, self._held = (self._held, []) if text else (self._known[-_MOST_HELD:] + self._held, [])
        return text

    def _decode(self, ids: list[int]) -> str:
        decoded = self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return str(decoded)


class StopStrings:
    """Holds back what may be the beginning of a stop string, and ends the text before the first that is complete."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._matchers = [_Matcher(stop) for stop in stops]
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """The text that is certain now. After a stop string was found (`stopped`) there is no more."""
        if self.stopped:
            return ""
        start = len(self._held)
        self._held += text
        for end, char in enumerate(text, start + 1):
            complete = [len(m.pattern) for m in self._matchers if m.advance(char)]
            if complete:
                self.stopped = True
                certain, self._held = self._held[: end - max(complete)], ""
                return certain
        keep = max((m.matched for m in self._matchers), default=0)
        cut = len(self._held) - keep
        certain, self._held = self._held[:cut], self._held[cut:]
        return certain

    def flush(self) -> str:
        """What was held back, now that the text is over."""
        certain, self._held = self._held, ""
        return certain


class _Matcher:
    """Knuth, Morris, Pratt 1977: how many first characters of `pattern` the text so far ends with.

    The failure function is built only as far as the pattern has matched: a long pattern costs nothing until then.
    """

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self.matched = 0
        self._failure = [0]

    def advance(self, char: str) -> bool:
        """Whether this character completes the pattern."""
        self.matched = self._extend(self.matched, char)
        while len(self._failure) < self.matched:
            self._failure.append(self._extend(self._failure[-1], self.pattern[len(self._failure)]))
        return self.matched == len(self.pattern)

    def _extend(self, matched: int, char: str) -> int:
        while matched and self.pattern[matched] != char:
            matched = self._failure[matched - 1]
        return matched + (self.pattern[matched] == char)
