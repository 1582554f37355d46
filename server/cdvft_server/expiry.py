"""When a key expires: `90d` from now, a date, or unix seconds. Pure."""

import re
from datetime import UTC, datetime

__all__ = ["parse_expiry"]

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
LATEST = 253_402_300_799  # the last second of the year 9999


def parse_expiry(when: str | int, now: int) -> int:
    """Unix seconds, after `now`. A date without a time begins in UTC. Raises ValueError for anything else."""
    at = when if isinstance(when, int) else _seconds(when.strip(), now)
    if not now < at <= LATEST:
        raise ValueError(f"{str(when)[:40]!r} is not in the future, or too far in it")
    return at


def _seconds(text: str, now: int) -> int:
    if match := re.fullmatch(r"([0-9]{1,9})([smhdw])", text):
        return now + int(match[1]) * UNITS[match[2]]
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(
            f"{text[:40]!r} is neither a time from now (30m, 12h, 90d, 4w) nor a date (2030-01-31, 2030-01-31T12:00Z)"
        ) from None
    return int((found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp())
