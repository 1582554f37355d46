"""JSON objects without the laxness of the standard parser: no duplicate keys, NaN, infinities or broken Unicode."""

import json
import math
from typing import Any

from cdvft.errors import InvalidAdapter

__all__ = ["parse_object", "unique_keys"]


def parse_object(data: bytes, what: str) -> dict[str, Any]:
    """A JSON object from UTF-8 bytes. Raises InvalidAdapter starting with `what` for anything else."""
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=unique_keys,
            parse_constant=_refuse_constant,
            parse_float=_finite,
        )
        json.dumps(value, ensure_ascii=False).encode("utf-8")  # lone surrogates cannot be written again
    except UnicodeDecodeError as error:
        raise InvalidAdapter(f"{what} is not UTF-8 (byte {error.start})") from None
    except UnicodeEncodeError:
        raise InvalidAdapter(f"{what} has half a surrogate pair in a string; write whole characters") from None
    except RecursionError:
        raise InvalidAdapter(f"{what} is nested too deeply") from None
    except ValueError as error:
        raise InvalidAdapter(f"{what} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise InvalidAdapter(f"{what} must be a JSON object, it is a {type(value).__name__}")
    return value


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For `object_pairs_hook`. Raises ValueError naming a key that comes twice."""
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"duplicate key {key[:200]!r}")
        result[key] = value
    return result


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:40]} is out of range")
    return value
