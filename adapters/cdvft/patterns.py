"""Module-name patterns of PEFT configs, matched in linear time (RE2), so that no upload can stall the server."""

from collections.abc import Iterable

import re2

from cdvft.errors import InvalidAdapter

__all__ = ["full_match", "lookup", "suffix_match"]


def _compile(pattern: str, key: str) -> "re2._Regexp":
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


def lookup(pattern: dict[str, int], name: str, key: str) -> int | None:
    """The value of the first entry that matches the name or its end after a dot (PEFT's `*_pattern` dictionaries)."""
    for expression, value in pattern.items():
        if suffix_match(expression, name) or full_match(rf"(?:.*\.)?(?:{expression})", [name], key):
            return value
    return None
