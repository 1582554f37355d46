"""How much each tenant may ask for: requests and tokens per minute, requests at a time.

A bucket holds a minute's worth and fills evenly: a tenant may ask for all of it at once, and goes on at the rate.
Counted in this process: each replica gives a tenant its whole limits. Nothing is kept of a tenant whose buckets are
full.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Self

from cdvft_server.errors import ApiError
from cdvft_server.service.access import Caller

__all__ = ["Charge", "Limiter"]

MINUTE = 60.0  # seconds
KEPT = 256  # tenants, before full buckets are looked for


@dataclass
class _Bucket:
    """`used` of `size`, less `size / 60` a second; more than `size` is owed."""

    size: int = 0
    used: float = 0.0
    at: float = 0.0

    def look(self, size: int, now: float) -> "_Bucket":
        """As it is now, with this size from now on."""
        self.used = max(0.0, self.used - (now - self.at) * self.size / MINUTE)
        self.size, self.at = size, now
        return self

    @property
    def left(self) -> int:
        return max(0, math.floor(self.size - self.used + 1e-9))

    def wait(self, amount: float) -> float:
        """Seconds until this much is there."""
        missing = self.used + amount - self.size
        return missing * MINUTE / self.size if missing > 1e-9 else 0.0

    @property
    def reset(self) -> float:
        """Seconds until it is full."""
        return self.used * MINUTE / self.size


@dataclass
class _Tenant:
    requests: _Bucket = field(default_factory=_Bucket)
    tokens: _Bucket = field(default_factory=_Bucket)
    running: int = 0


class Charge:
    """Tokens that a call may use, taken when it begins. The first `settle` gives back what it did not use."""

    def __init__(self, bucket: _Bucket | None, taken: int) -> None:
        self._bucket, self._taken = bucket, taken

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """What has not been settled cost nothing."""
        self.settle(0)

    def settle(self, used: int) -> None:
        if self._bucket is not None:
            self._bucket.used = max(0.0, self._bucket.used + used - self._taken)
            self._bucket = None


class Limiter:
    """For the loop's thread only. `clock` is in seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._tenants: dict[str, _Tenant] = {}
        self._sweep_at = KEPT

    def enter(self, caller: Caller) -> AbstractContextManager[None]:
        """Count a request; it runs as long as what this gives is open. Raises ApiError rate_limited."""
        limits, own, now = caller.limits, self._of(caller.tenant), self._clock()
        if limits.max_concurrent is not None and own.running >= limits.max_concurrent:
            raise _limited(f"{own.running} requests of tenant {caller.tenant} run already, as many as it may have", 1.0)
        if limits.requests_per_minute is not None:
            bucket = own.requests.look(limits.requests_per_minute, now)
            if (wait := bucket.wait(1)) > 0:
                raise _limited(f"tenant {caller.tenant} has had its {bucket.size} requests per minute", wait)
            bucket.used += 1
        own.running += 1
        return self._running(own)

    @contextmanager
    def _running(self, own: _Tenant) -> Iterator[None]:
        try:
            yield
        finally:
            own.running -= 1

    def reserve(self, caller: Caller, tokens: int) -> Charge:
        """Take what a call may use at most, prompt and answer; a call larger than a minute's tokens waits until all of
        them are there, and what it uses beyond is owed. Raises ApiError rate_limited."""
        limit = caller.limits.tokens_per_minute
        if limit is None:
            return Charge(None, 0)
        bucket = self._of(caller.tenant).tokens.look(limit, self._clock())
        taken = min(tokens, limit)
        if (wait := bucket.wait(taken)) > 0:
            raise _limited(
                f"tenant {caller.tenant} has {bucket.left} of its {limit} tokens per minute left, the request may take "
                f"{tokens} (prompt and max_tokens)",
                wait,
            )
        bucket.used += taken
        return Charge(bucket, taken)

    def headers(self, caller: Caller) -> dict[str, str]:
        """OpenAI's headers, for what is limited."""
        limits, now = caller.limits, self._clock()
        sizes = {"requests": limits.requests_per_minute, "tokens": limits.tokens_per_minute}
        headers = {}
        for what, size in sizes.items():
            if size is not None:
                bucket: _Bucket = getattr(self._of(caller.tenant), what).look(size, now)
                headers[f"x-ratelimit-limit-{what}"] = str(size)
                headers[f"x-ratelimit-remaining-{what}"] = str(bucket.left)
                headers[f"x-ratelimit-reset-{what}"] = _duration(bucket.reset)
        return headers

    def _of(self, tenant: str) -> _Tenant:
        if tenant not in self._tenants:
            self._sweep()
            self._tenants[tenant] = _Tenant()
        return self._tenants[tenant]

    def _sweep(self) -> None:
        """Forget tenants of whom there is nothing to know; as seldom as their number doubles."""
        if len(self._tenants) < self._sweep_at:
            return
        now = self._clock()
        self._tenants = {
            name: own
            for name, own in self._tenants.items()
            if own.running or any(bucket.look(bucket.size, now).used for bucket in (own.requests, own.tokens))
        }
        self._sweep_at = max(KEPT, 2 * len(self._tenants))


def _limited(message: str, wait: float) -> ApiError:
    seconds = max(1, math.ceil(wait))
    return ApiError("rate_limited", f"{message}; try again in {seconds} s", retry_after=seconds)


def _duration(seconds: float) -> str:
    """As OpenAI writes it: 350ms, 12s, 2m5s."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    minutes, rest = divmod(math.ceil(seconds), 60)
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"
