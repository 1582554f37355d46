"""Module-name patterns of PEFT configs, matched in linear time (RE2), so that no upload can stall the server."""

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import TypeVar

import re2

from cdvft.errors import InvalidAdapter
from cdvft.family import FAMILIES

__all__ = ["full_match", "layer_index", "lookup", "suffix_match"]

T = TypeVar("T")
PREFIXES = tuple(sorted({prefix for family in FAMILIES.values() for prefix in family.prefixes}))
MAX_PATTERN = 4096  # characters
MAX_ENTRIES = 1024  # of one `*_pattern` dictionary


@lru_cache(maxsize=2048)
def _compile(pattern: str, key: str) -> "re2._Regexp":
    if len(pattern) > MAX_PATTERN:
        raise InvalidAdapter(
            f"adapter_config.json: {key} has a pattern of {len(pattern)} characters, at most {MAX_PATTERN}"
        )
    options = re2.Options()
    options.log_errors = False
    options.max_mem = 1 << 20
    try:
        return re2.compile(pattern, options=options)
    except re2.error as error:
        reason = error.args[0].decode() if error.args and isinstance(error.args[0], bytes) else str(error)
        raise InvalidAdapter(
            f"adapter_config.json: {key} pattern {pattern[:200]!r} is not accepted ({reason}); "
            "use RE2 syntax without look-around and back-references, or a list of names"
        ) from None


def full_match(pattern: str, names: Iterable[str], key: str) -> bool:
    """Does the pattern match one of the names entirely? Raises InvalidAdapter for a pattern RE2 refuses."""
    compiled = _compile(pattern, key)
    return any(compiled.fullmatch(name) is not None for name in names)


def suffix_match(target: str, name: str) -> bool:
    """PEFT's rule for a list entry: the whole name, or its end after a dot."""
    return name == target or name.endswith("." + target)


def lookup(pattern: Mapping[str, T], name: str, key: str) -> T | None:
    """The value of the first entry that matches the name or its end after a dot (PEFT's `*_pattern` dictionaries).

    `name` is a site's; an entry may be written for it with any family's prefix in front.
    """
    if len(pattern) > MAX_ENTRIES:
        raise InvalidAdapter(
            f"adapter_config.json: {key} has {len(pattern)} entries, at most {MAX_ENTRIES} are accepted"
        )
    names = [name, *(prefix + name for prefix in PREFIXES)]
    for expression, value in pattern.items():
        if expression in names or suffix_match(expression, name):
            return value
        if full_match(rf"(?:.*\.)?(?:{expression})", names, key):
            return value
    return None


def layer_index(paths: Iterable[str], layers_patterns: Iterable[str]) -> int | None:
    """The layer number in a module path: the last number between two dots that has a name and a path before it, or that
    follows one of the patterns, as PEFT reads `layers_to_transform` and `layers_pattern`."""
    patterns = sorted(layers_patterns) or ["[^.]*"]
    for path in paths:
        for pattern in patterns:
            found = _compile(rf".*\.(?:{pattern})\.(\d+)\..*", "layers_pattern").fullmatch(path)
            if found is not None:
                return int(found.group(1))
    return None
