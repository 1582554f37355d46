"""Who is asking: a key's tenant and scopes, or, as long as no key is needed, the tenant `default`.

Each request reads the store once, or sees that nothing was written to it since, so that a key that was revoked, here or
by another process, lets nobody in from then on. While the store is away, what it last said holds for a minute.
"""

import hmac
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import get_args

from cdvft_server.addresses import is_loopback
from cdvft_server.administration import Scope
from cdvft_server.config import ServeConfig
from cdvft_server.errors import ApiError
from cdvft_server.exceptions import StoreUnavailable
from cdvft_server.service.lastknown import LastKnown
from cdvft_server.service.workers import Workers
from cdvft_server.store import DEFAULT_TENANT, SECRET, Found, KeyRow, Store, TenantLimits, Unchanged, hash_of, lookup_of

__all__ = ["KEYLESS_SCOPES", "SCOPES", "Access", "Caller", "keys_required"]

SCOPES = get_args(Scope)
KEYLESS_SCOPES = ("infer", "upload")  # who only reaches the port cannot make keys that lock out everybody else
MAX_KNOWN = 10_000  # keys
NO_LIMITS = TenantLimits()
OTHER = " "  # no key is that
NO_BEARER = "the header Authorization is not 'Bearer KEY', or is there more than once; send it once, in this form"


@dataclass(frozen=True)
class Caller:
    """`tenant` owns what is asked for by a plain name. `key_id` is None where no key was needed, and none was given."""

    tenant: str
    scopes: frozenset[str]
    key_id: str | None = None
    weight: float = 1.0
    limits: TenantLimits = NO_LIMITS


class Access:
    """For the loop's thread only. `now` is in unix seconds, `clock` in seconds of any beginning."""

    def __init__(
        self,
        config: ServeConfig,
        store: Store,
        workers: Workers,
        now: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._find, self._workers, self._now = store.keys.find, workers, now
        self._always = not is_loopback(config.host) and not config.allow_unauthenticated
        self._unchanged: Unchanged[str, Found] = Unchanged(store.changes)
        self._last_known: LastKnown[str, Found] = LastKnown(config.stale_seconds, MAX_KNOWN, clock)
        self.required = self._always  # whether a key is needed, as the last request found it

    async def start(self) -> None:
        """Read the flag, for those requests that read nothing. Raises StoreUnavailable."""
        await self._read("")

    async def resolve(self, authorization: Sequence[str]) -> Caller:
        """`authorization`: what the headers of this name say. Raises ApiError invalid_api_key, StoreUnavailable."""
        secret = _secret(authorization)
        hashed = hash_of(secret) if secret.startswith(SECRET) else ""
        found = await self._read(lookup_of(hashed))
        if not hashed:
            return self._keyless(found, secret)
        for own in found.candidates:
            if hmac.compare_digest(own.hash, hashed):
                _check_valid(own.key, self._now())
                return Caller(own.key.tenant, frozenset(own.key.scopes), own.key.id, own.weight, own.limits)
        raise ApiError("invalid_api_key", "the API key is not known; ask for a new one (cdvft keys create)")

    def forget(self, *, key_id: str | None = None, tenant: str | None = None) -> None:
        """This key, or a tenant's, was changed: what was known of it does not hold any more."""
        self._last_known.forget(
            lambda _, found: any(key_id == own.key.id or tenant == own.key.tenant for own in found.candidates)
        )

    def _keyless(self, found: Found, sent: str) -> Caller:
        """What is no key of ours does not matter where none is needed: OpenAI's clients always send something."""
        if self.required:
            raise ApiError(
                "invalid_api_key",
                NO_BEARER
                if sent == OTHER
                else f"the API key does not begin with {SECRET}: send one that `cdvft keys create` printed"
                if sent
                else "there is no API key; send it as 'Authorization: Bearer KEY' (cdvft keys create makes one)",
            )
        return Caller(DEFAULT_TENANT, frozenset(KEYLESS_SCOPES), None, found.weight, found.limits)

    async def _read(self, lookup: str) -> Found:
        mark = self._unchanged.mark()
        if (same := self._unchanged.get(lookup)) is not None:
            return same
        asked = self._last_known.ask()
        try:
            found = await self._workers.run(self._find, lookup)
        except StoreUnavailable:
            if (known := self._last_known.get(lookup)) is None:
                raise
            return known
        if found.candidates or not lookup:  # who guesses takes no memory
            self._last_known.put(lookup, found, asked)
            self._unchanged.put(lookup, found, mark)
        self.required = self._always or found.required
        return found


def keys_required(database: str) -> bool:
    """What the flag of the store at this URL says. Raises what `Store.open` does."""
    store = Store.open(database)
    try:
        return store.keys.required()
    finally:
        store.close()


def _secret(authorization: Sequence[str]) -> str:
    """The key; "" where none is sent, OTHER for anything but one `Bearer KEY`."""
    if not authorization:
        return ""
    scheme, _, secret = authorization[0].strip().partition(" ")
    if len(authorization) > 1 or scheme.lower() != "bearer":
        return OTHER
    return secret.strip()


def _check_valid(key: KeyRow, now: float) -> None:
    """Who gets here has the key itself, and may know what became of it. Raises ApiError."""
    if key.revoked_at is not None:
        raise ApiError("invalid_api_key", f"the API key {key.id} was revoked; ask for a new one (cdvft keys create)")
    if key.expires_at is not None and key.expires_at <= now:
        raise ApiError("invalid_api_key", f"the API key {key.id} has expired; ask for a new one (cdvft keys create)")
