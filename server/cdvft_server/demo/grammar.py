"""A small generative grammar with memory: it writes text and it parses what it could have written.

A rule is a list of weighted templates. In a template `<rule>` expands a rule, `{list}` picks a word,
`{x=list}` picks a word and remembers it as x, and `{x}` repeats it, so that a story keeps its hero.
A word may have several fields (`Tom|he|his`): `.1` names the second. Modifiers stand before a colon:
`a:` puts the indefinite article, `cap:` capitalises, and they chain from right to left.

Knows nothing about English beyond "a" and "an"; the words and rules are in `language.py`.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

Word = tuple[str, ...]
Memory = tuple[tuple[str, Word], ...]
"""Remembered words in the order of their names: hashable, so that equal parses can be merged."""

_ITEM = re.compile(r"<(\w+)>|\{((?:\w+:)*)(\w+)(?:=(\w+))?(?:\.(\d))?\}")


class GrammarError(ValueError):
    """A rule names something that does not exist, or a word lacks the field that a rule asks for."""


@dataclass(frozen=True)
class Call:
    rule: str


@dataclass(frozen=True)
class Slot:
    """A word from list `source` (None: the one remembered as `name`), its `field`, and modifiers."""

    name: str
    source: str | None
    field: int
    modifiers: tuple[str, ...]

    def render(self, word: Word) -> str:
        text = word[self.field]
        for modifier in reversed(self.modifiers):
            text = _MODIFIERS[modifier](text)
        return text


Item = str | Call | Slot


def _article(text: str) -> str:
    return ("an " if text[0] in "aeiou" else "a ") + text


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


_MODIFIERS = {"a": _article, "cap": _capital}


@dataclass(frozen=True)
class Rule:
    alternatives: tuple[tuple[Item, ...], ...]
    cumulative: tuple[float, ...]
    """Running sums of the alternatives' weights."""


@dataclass(frozen=True)
class Grammar:
    """`lists` maps a name to (weight, word) pairs, `rules` a name to its templates."""

    lists: Mapping[str, tuple[tuple[float, Word], ...]]
    rules: Mapping[str, Rule]

    def restricted(self, lists: Mapping[str, str]) -> Grammar:
        """The same rules with each list named by a key of `lists` replaced by the list it maps to."""
        return replace(self, lists={**self.lists, **{name: self.lists[to] for name, to in lists.items()}})

    def generate(self, rule: str, rng: random.Random) -> str:
        """One text of `rule`; every choice comes from `rng`, so a seed fixes the text."""
        memory: dict[str, Word] = {}
        return "".join(self._write(Call(rule), rng, memory))

    def _write(self, item: Item, rng: random.Random, memory: dict[str, Word]) -> Iterator[str]:
        if isinstance(item, str):
            yield item
        elif isinstance(item, Slot):
            if item.source is not None:
                entries = self.lists[item.source]
                memory[item.name] = rng.choices(entries, weights=[w for w, _ in entries])[0][1]
            yield item.render(memory[item.name])
        else:
            rule = self.rules[item.rule]
            for part in rng.choices(rule.alternatives, cum_weights=rule.cumulative)[0]:
                yield from self._write(part, rng, memory)

    def parses(self, rule: str, text: str) -> bool:
        """Whether `rule` can write exactly `text`, remembered words included."""
        return any(end == len(text) for end, _ in self._rule_ends(rule, text, 0, ()))

    def _rule_ends(self, rule: str, text: str, start: int, memory: Memory) -> set[tuple[int, Memory]]:
        found: set[tuple[int, Memory]] = set()
        for alternative in self.rules[rule].alternatives:
            ends = {(start, memory)}
            for item in alternative:
                ends = {after for end, words in ends for after in self._item_ends(item, text, end, words)}
                if not ends:
                    break
            found |= ends
        return found

    def _item_ends(self, item: Item, text: str, start: int, memory: Memory) -> Iterator[tuple[int, Memory]]:
        if isinstance(item, str):
            if text.startswith(item, start):
                yield start + len(item), memory
        elif isinstance(item, Call):
            yield from self._rule_ends(item.rule, text, start, memory)
        else:
            known = dict(memory)
            words = [known[item.name]] if item.source is None else [w for _, w in self.lists[item.source]]
            for word in words:
                rendered = item.render(word)
                if text.startswith(rendered, start):
                    after = memory if item.source in (None, item.name) else _remember(known, item.name, word)
                    yield start + len(rendered), after


def _remember(known: Mapping[str, Word], name: str, word: Word) -> Memory:
    return tuple(sorted({**known, name: word}.items()))


def read_grammar(words: str, rules: str) -> Grammar:
    """Read word lists (`name: a, b|c, *0.1 other_list`: `*w` mixes another list in with total weight w
    against 1 for the line's own words) and rules (`name:`, then one template a line, `*w` first for a
    weight). Lines that begin with `#` are comments.

    Raises GrammarError for an unknown list, rule, remembered word, field or modifier.
    """
    lists: dict[str, tuple[tuple[float, Word], ...]] = {}
    for line in _lines(words):
        name, _, body = line.partition(":")
        lists[name] = _read_list([part.strip() for part in body.split(",")], lists)
    templates: dict[str, list[str]] = {}
    name = ""
    for line in _lines(rules):
        if re.fullmatch(r"\w+:", line):
            name = line[:-1]
            templates[name] = []
        else:
            templates[name].append(line)
    grammar = Grammar(lists, {name: _read_rule(lines, lists) for name, lines in templates.items()})
    _check(grammar)
    return grammar


def _lines(text: str) -> Iterator[str]:
    return (line for line in map(str.strip, text.splitlines()) if line and not line.startswith("#"))


def _read_list(
    parts: Sequence[str], lists: Mapping[str, tuple[tuple[float, Word], ...]]
) -> tuple[tuple[float, Word], ...]:
    own: list[Word] = [tuple(part.split("|")) for part in parts if not part.startswith("*")]
    entries = [(1 / len(own), word) for word in own]
    for part in parts:
        if part.startswith("*"):
            weight, source = part[1:].split()
            if source not in lists:
                raise GrammarError(f"list {source!r} is not defined above the line that mixes it in")
            entries += [(float(weight) * share, word) for share, word in lists[source]]
    return tuple(entries)


def _read_rule(lines: Sequence[str], lists: Mapping[str, object]) -> Rule:
    weights, alternatives = [], []
    for line in lines:
        weight, template = 1.0, line
        if line.startswith("*"):
            number, template = line[1:].split(maxsplit=1)
            weight = float(number)
        weights.append(weight)
        alternatives.append(tuple(_read_template(template.replace("\\n", "\n"), lists)))
    return Rule(tuple(alternatives), tuple(accumulate(weights)))


def _read_template(template: str, lists: Mapping[str, object]) -> Iterator[Item]:
    done = 0
    for match in _ITEM.finditer(template):
        if match.start() > done:
            yield template[done : match.start()]
        done = match.end()
        rule, modifiers, name, source, field = match.groups()
        if rule:
            yield Call(rule)
        else:
            from_list = source or (name if name in lists else None)
            yield Slot(name, from_list, int(field or 0), tuple(filter(None, modifiers.split(":"))))
    if done < len(template):
        yield template[done:]


def _check(grammar: Grammar) -> None:
    items = [i for rule in grammar.rules.values() for alternative in rule.alternatives for i in alternative]
    bound = {i.name: i.source for i in items if isinstance(i, Slot) and i.source}
    for item in items:
        if isinstance(item, Call) and item.rule not in grammar.rules:
            raise GrammarError(f"rule {item.rule!r} is called but not defined")
        if not isinstance(item, Slot):
            continue
        source = item.source or bound.get(item.name, "")
        if source not in grammar.lists:
            raise GrammarError(f"slot {item.name!r} is neither a list nor remembered by any rule")
        if any(len(word) <= item.field for _, word in grammar.lists[source]):
            raise GrammarError(f"a word of list {source!r} has no field {item.field}")
        if unknown := set(item.modifiers) - set(_MODIFIERS):
            raise GrammarError(f"unknown modifier {sorted(unknown)} on slot {item.name!r}")
