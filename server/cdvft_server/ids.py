"""Names for requests and calls, and seeds: unlike each other, and no secrets."""

from random import Random

__all__ = ["new_id", "new_seed"]

_random = Random()  # begins with the system's random bits; a call to the system for each id costs the loop its turn


def new_id() -> str:
    """24 hex digits."""
    return f"{_random.getrandbits(96):024x}"


def new_seed() -> int:
    """63 bits."""
    return _random.getrandbits(63)
