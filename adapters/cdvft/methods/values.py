"""Values of adapter_config.json, typed and in range, or refused by key."""

import math
from collections.abc import Mapping
from typing import Any

from cdvft.errors import InvalidAdapter

__all__ = ["choice", "integer", "number"]


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
    """The finite number under `key`; absent or null is the default."""
    value = config.get(key)
    if value is None:
        return default
    try:
        if not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value):
            return float(value)
    except OverflowError:  # an integer beyond the largest float
        pass
    raise InvalidAdapter(f"adapter_config.json: {key} must be a finite number, it is {short(value)}")


def choice(config: Mapping[str, Any], key: str, choices: tuple[Any, ...]) -> Any:
    """One of `choices` under `key`; absent or null is the first."""
    value = config.get(key)
    if value is None:
        return choices[0]
    if value not in choices:
        raise InvalidAdapter(f"adapter_config.json: {key} must be one of {', '.join(choices)}, it is {short(value)}")
    return value


def short(value: object) -> str:
    """The value for a message, cut to 100 characters."""
    text = repr(value)
    return text if len(text) <= 100 else text[:100] + "..."
