"""API keys: made, found by what their hash begins with, rotated, revoked; and whether one is needed at all.

A key is 256 random bits, so nothing can be guessed from its hash and a fast one will do: slow hashes protect what
people choose. Every method is one transaction.
"""

import hashlib
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, and_, bindparam, func, insert, select, update

from cdvft_server.exceptions import Conflict, UnknownKey
from cdvft_server.naming import is_name
from cdvft_server.store.database import Database
from cdvft_server.store.paging import page_of
from cdvft_server.store.tables import keys, settings, tenants
from cdvft_server.store.tenants import DEFAULT_TENANT, LIMITS, TenantLimits, limits_of, lock_tenant

__all__ = ["SECRET", "Candidate", "Found", "KeyRow", "Keys", "hash_of", "lookup_of"]

SECRET = "cdvft-"  # what every key begins with
SHOWN = len(SECRET) + 6  # characters of a key in lists
ID = re.compile(r"key_[0-9a-f]{24}")
LOOKUP = 16  # hex digits: two keys share them once in a billion years
REQUIRED = "authentication_required"
OWNER = func.coalesce(keys.c.tenant, DEFAULT_TENANT)
STATEMENT = (
    select(settings.c.value, keys, tenants.c.weight, *(tenants.c[name] for name in LIMITS))
    .select_from(
        settings.outerjoin(keys, keys.c.lookup == bindparam("lookup")).outerjoin(tenants, tenants.c.name == OWNER)
    )
    .where(settings.c.name == REQUIRED)
)
"""What every request needs to know, in one read: the flag, the keys that may be the one, their tenants' limits."""


@dataclass(frozen=True)
class KeyRow:
    """Times are in unix seconds. `prefix` is what the key begins with."""

    id: str
    tenant: str
    prefix: str
    scopes: tuple[str, ...]
    created_at: int
    expires_at: int | None
    revoked_at: int | None


@dataclass(frozen=True)
class Candidate:
    """A key whose hash begins as the one that was sent; `hash` is the whole of it."""

    key: KeyRow
    hash: str
    limits: TenantLimits
    weight: float


@dataclass(frozen=True)
class Found:
    """`required`: whether a key is needed; `limits` and `weight` are those of the tenant `default`."""

    required: bool
    candidates: tuple[Candidate, ...]
    limits: TenantLimits
    weight: float


def hash_of(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


def lookup_of(hashed: str) -> str:
    """What rows are found by."""
    return hashed[:LOOKUP]


class Keys:
    def __init__(self, database: Database) -> None:
        self._database = database

    def create(self, tenant: str, scopes: Iterable[str], expires_at: int | None, now: int) -> tuple[KeyRow, str]:
        """The new key, and the secret itself, which is not kept; from now on a key is needed. Raises UnknownTenant."""
        with self._database.write() as connection:
            lock_tenant(connection, tenant)
            return _make(connection, tenant, tuple(scopes), expires_at, now)

    def find(self, lookup: str) -> Found:
        """What a request must know; "" where no key was sent."""
        with self._database.read() as connection:
            rows = connection.execute(STATEMENT, {"lookup": lookup}).mappings().all()
        candidates = tuple(
            Candidate(_row(row), row["hash"], limits_of(row), row["weight"]) for row in rows if row["id"] is not None
        )
        own = rows[0] if rows and not candidates else None
        return Found(
            required=not rows or rows[0]["value"] != "false",  # a flag that is lost or unreadable counts as set
            candidates=candidates,
            limits=TenantLimits() if own is None else limits_of(own),
            weight=1.0 if own is None else own["weight"],
        )

    def get(self, key_id: str) -> KeyRow:
        """Raises UnknownKey."""
        with self._database.read() as connection:
            return _one(connection, key_id)

    def page(
        self, limit: int | None = None, after: str | None = None, tenant: str | None = None
    ) -> tuple[list[KeyRow], bool]:
        """Newest first, and whether there are more. Raises UnknownKey for an `after` that is not there."""
        if after is not None:
            _check(after, " to list after")
        if tenant is not None and not is_name(tenant):
            return [], False
        rows = select(keys) if tenant is None else select(keys).where(keys.c.tenant == tenant)
        unknown = UnknownKey(f"there is no key {after!r} to list after")
        place = {"number": keys.c.number, "name": keys.c.id}
        with self._database.read() as connection:
            found, more = page_of(connection, rows, **place, limit=limit, after=after, unknown=unknown)
        return [_row(row) for row in found], more

    def revoke(self, key_id: str, now: int) -> KeyRow:
        """No request that comes from now on is let in by it. Raises UnknownKey; does nothing to one that is revoked."""
        _check(key_id)
        with self._database.write() as connection:
            mine = and_(keys.c.id == key_id, keys.c.revoked_at.is_(None))
            connection.execute(update(keys).where(mine).values(revoked_at=now))
            return _one(connection, key_id)

    def rotate(self, key_id: str, overlap: int, expires_at: int | None, now: int) -> tuple[KeyRow, str, KeyRow]:
        """A new key of the same tenant and scopes, its secret, and the old one, which ends in `overlap` seconds.

        `expires_at` None: the new one lives as long as the old one was to. Raises UnknownKey, and Conflict where the
        old one is revoked or has expired.
        """
        with self._database.write() as connection:
            old = _one(connection, key_id)
            if old.revoked_at is not None or (old.expires_at is not None and old.expires_at <= now):
                raise Conflict(f"key {key_id} is revoked or has expired; create a new one")
            if expires_at is None and old.expires_at is not None:
                expires_at = now + old.expires_at - old.created_at
            made, secret = _make(connection, old.tenant, old.scopes, expires_at, now)
            ends = min(now + overlap, old.expires_at or now + overlap)
            connection.execute(update(keys).where(keys.c.id == key_id).values(expires_at=ends))
            return made, secret, _one(connection, key_id)

    def required(self) -> bool:
        """Whether a key is needed: from the first one on, until `allow_unauthenticated`."""
        return self.find("").required

    def allow_unauthenticated(self) -> None:
        """No key is needed from now on, until the next one is made."""
        with self._database.write() as connection:
            _set_required(connection, False)


def _make(
    connection: Connection, tenant: str, scopes: tuple[str, ...], expires_at: int | None, now: int
) -> tuple[KeyRow, str]:
    secret = SECRET + secrets.token_urlsafe(32)
    hashed = hash_of(secret)
    row = {
        "id": f"key_{secrets.token_hex(12)}",
        "tenant": tenant,
        "lookup": lookup_of(hashed),
        "hash": hashed,
        "prefix": secret[:SHOWN],
        "scopes": ",".join(scopes),
        "created_at": now,
        "expires_at": expires_at,
        "revoked_at": None,
    }
    connection.execute(insert(keys).values(row))
    _set_required(connection, True)
    return _row(row), secret


def _set_required(connection: Connection, required: bool) -> None:
    connection.execute(update(settings).where(settings.c.name == REQUIRED).values(value=str(required).lower()))


def _check(key_id: str, why: str = "") -> None:
    """PostgreSQL cannot even be asked for what has a NUL or half a surrogate pair. Raises UnknownKey."""
    if ID.fullmatch(key_id) is None:
        raise UnknownKey(f"there is no key {key_id[:100]!r}{why}")


def _one(connection: Connection, key_id: str) -> KeyRow:
    _check(key_id)
    found = connection.execute(select(keys).where(keys.c.id == key_id)).mappings().one_or_none()
    if found is None:
        raise UnknownKey(f"there is no key {key_id[:100]!r}")
    return _row(found)


def _row(found: Mapping[Any, Any]) -> KeyRow:
    own = {name: found[name] for name in ("id", "tenant", "prefix", "created_at", "expires_at", "revoked_at")}
    return KeyRow(**own, scopes=tuple(filter(None, found["scopes"].split(","))))
