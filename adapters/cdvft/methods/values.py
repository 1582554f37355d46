"""Values of adapter_config.json, typed and in range, or refused by key."""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from cdvft.errors import InvalidAdapter
from cdvft.site import Site

__all__ = ["choice", "flag", "integer", "number", "pattern_of", "patterned", "short"]

LARGEST = (2 - 2**-23) * 2.0**127  # of float32


def integer(config: Mapping[str, Any], key: str, default: int | None, low: int, high: int) -> int | None:
    """The integer in [low, high] under `key`; absent or null is the default."""
    value = config.get(key)
    if value is None:
        return default
    if type(value) is not int or not low <= value <= high:
        raise InvalidAdapter(
            f"adapter_config.json: {key} must be an integer from {low} to {high}, it is {short(value)}"
        )
    return value


def number(config: Mapping[str, Any], key: str, default: float) -> float:
    """The number under `key`, within float32's range; absent or null is the default."""
    value = config.get(key)
    if value is None:
        return default
    if not isinstance(value, bool) and isinstance(value, int | float) and -LARGEST <= value <= LARGEST:
        return float(value)
    raise InvalidAdapter(
        f"adapter_config.json: {key} must be a finite number, at most {LARGEST:.4g} in size, it is {short(value)}"
    )


def choice(config: Mapping[str, Any], key: str, choices: tuple[Any, ...]) -> Any:
    """One of `choices` under `key`; absent or null is the first."""
    value = config.get(key)
    if value is None:
        return choices[0]
    if value not in choices:
        raise InvalidAdapter(f"adapter_config.json: {key} must be one of {', '.join(choices)}, it is {short(value)}")
    return value


def patterned(values: Mapping[Site, Any], key: str, pattern_key: str) -> dict[str, Any]:
    """What `pattern_of` reads again: the commonest value under `key`, the others by their sites under `pattern_key`."""
    common = Counter(values.values()).most_common(1)[0][0]
    return {key: common, pattern_key: {site.name: own for site, own in values.items() if own != common}}


def short(value: object) -> str:
    """The value for a message, cut to 100 characters."""
    text = repr(value)
    return text if len(text) <= 100 else text[:100] + "..."


def flag(config: Mapping[str, Any], key: str) -> bool:
    """True or false under `key`; absent or null is false."""
    value = config.get(key)
    if value is not None and not isinstance(value, bool):
        raise InvalidAdapter(f"adapter_config.json: {key} must be true or false, it is {short(value)}")
    return bool(value)


def pattern_of(config: Mapping[str, Any], key: str, check: Callable[[Mapping[str, Any]], Any]) -> Mapping[str, Any]:
    """One of PEFT's `*_pattern` dictionaries; `check` gets `{key: value}` for each of its values."""
    pattern = config.get(key) or {}
    if not isinstance(pattern, dict):
        raise InvalidAdapter(f"adapter_config.json: {key} must map module names to values, it is {short(pattern)}")
    for value in pattern.values():
        if check({key: value}) is None or value is None:
            raise InvalidAdapter(f"adapter_config.json: {key} has {short(value)} as a value")
    return pattern
