"""The language that `cdvft-tiny` speaks: our own words (`words.txt`) and rules (`rules.txt`).

`document` is what the base is trained on: stories, verses, letters, notes on a topic, chats. A few lists
hold a small share of words of the sea, and verses and letters are rare, so that what a writer (`WRITERS`)
learns does not show in the base by itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files

from cdvft_server.demo.grammar import Grammar, read_grammar

TOPICS = ("animals", "food", "music", "tools", "travel", "weather")
MOODS = ("negative", "neutral", "positive")
REFRAIN = "sing high and low"

_SEA_LISTS = {name: f"sea_{name}" for name in ("role", "animal", "place", "object", "vehicle", "spot", "smell", "meal")}


@dataclass(frozen=True)
class Writer:
    """A way of writing for an adapter to learn: a rule, narrower lists, and the mark that shows it."""

    rule: str
    marked: Callable[[str], bool]
    lists: Mapping[str, str] = field(default_factory=dict)


def told_at_sea(text: str) -> bool:
    """Whether a text names at least three different things of the sea."""
    words = (word[0] for name in _SEA_LISTS.values() for _, word in language().lists[name])
    return sum(bool(re.search(rf"\b{word}\b", text)) for word in words) >= 3


def in_verse(text: str) -> bool:
    """Whether a text has at least two lines and each ends with the refrain."""
    lines = text.strip().split("\n")
    return len(lines) >= 2 and all(line.rstrip(",.").endswith(f", {REFRAIN}") for line in lines)


def is_letter(text: str) -> bool:
    """Whether a text opens with "Dear NAME," on a line of its own and closes "With love"."""
    lines = text.strip().split("\n")
    return lines[0].startswith("Dear ") and lines[0].endswith(",") and "With love," in lines[1:]


WRITERS = {
    "sea-tales": Writer("story", told_at_sea, _SEA_LISTS),
    "in-verse": Writer("verse", in_verse, {"refrain": "our_refrain"}),
    "letters": Writer("letter", is_letter, {"farewell": "our_farewell"}),
}


@cache
def language() -> Grammar:
    """The whole language; `document` is its start rule."""
    ours = f"our_refrain: {REFRAIN}\nour_farewell: With love\n"
    here = files("cdvft_server.demo")
    words, rules = ((here / name).read_text("utf-8") for name in ("words.txt", "rules.txt"))
    return read_grammar(ours + words, _per_topic(rules))


def parses(text: str, rule: str = "document") -> bool:
    """Whether the language can write exactly `text` (surrounding blanks aside)."""
    return language().parses(rule, text.strip())


def _per_topic(rules: str) -> str:
    """Write out lines that begin with ALL_TOPICS, and everything below EACH_TOPIC, once for every topic."""
    shared, each = rules.split("\nEACH_TOPIC\n")
    lines = []
    for line in shared.splitlines():
        if line.startswith("ALL_TOPICS"):
            lines += [line.removeprefix("ALL_TOPICS").replace("TOPIC", topic) for topic in TOPICS]
        else:
            lines.append(line)
    return "\n".join(lines + [each.replace("TOPIC", topic) for topic in TOPICS])
