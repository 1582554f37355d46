"""Tenants: who owns adapters and keys, and what each may have. Every method is one transaction."""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from itertools import groupby
from typing import Any

from sqlalchemy import ColumnElement, Connection, delete, distinct, func, insert, select, true, update

from cdvft_server.exceptions import Conflict, QuotaExceeded, UnknownTenant
from cdvft_server.naming import is_name
from cdvft_server.store.changes import delete_versions
from cdvft_server.store.database import Database
from cdvft_server.store.paging import page_of
from cdvft_server.store.replicas import announce
from cdvft_server.store.rows import LATEST, VersionRow, fetch
from cdvft_server.store.tables import adapters, aliases, blobs, keys, tenants

__all__ = ["DEFAULT_TENANT", "TenantLimits", "TenantRow", "Tenants", "check_quota", "limits_of", "lock_tenant"]

DEFAULT_TENANT = "default"  # always there; everybody's, as long as no key is needed


@dataclass(frozen=True)
class TenantLimits:
    """None is no limit but the server's. `max_adapters` counts names, `max_bytes` stored files, on all bases."""

    max_adapters: int | None = None
    max_bytes: int | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_concurrent: int | None = None


LIMITS = tuple(field.name for field in fields(TenantLimits))


@dataclass(frozen=True)
class TenantRow:
    """`adapters` and `bytes` are what it has now; `created_at` is in unix seconds."""

    name: str
    limits: TenantLimits
    weight: float
    created_at: int
    adapters: int
    bytes: int


@dataclass(frozen=True)
class RemovedAdapter:
    """One base's adapter, its versions, and the news by which the replicas hear of it."""

    name: str
    base_digest: str
    rows: list[VersionRow]
    news_id: int


def _adapter_id(row: VersionRow) -> int:
    return row.adapter_id


def _stored(owner: ColumnElement[str]) -> tuple[ColumnElement[int], ColumnElement[int]]:
    """Names that have a version, and bytes of files."""
    live = (aliases.c.adapter_id == adapters.c.id) & (aliases.c.alias == LATEST)
    count = select(func.count(distinct(adapters.c.name))).join(aliases, live).where(adapters.c.tenant == owner)
    size = select(func.coalesce(func.sum(blobs.c.size), 0)).where(blobs.c.tenant == owner)
    return count.scalar_subquery(), size.scalar_subquery()


_COUNT, _SIZE = _stored(tenants.c.name)
STATEMENT = select(tenants, _COUNT.label("adapters"), _SIZE.label("bytes"))


class Tenants:
    def __init__(self, database: Database) -> None:
        self._database = database

    def create(self, name: str, limits: TenantLimits | None = None, weight: float = 1.0) -> TenantRow:
        """Raises Conflict where it is there."""
        row = {"name": name, "weight": weight, "created_at": int(time.time()), **asdict(limits or TenantLimits())}
        with self._database.write() as connection:
            if connection.scalar(select(tenants.c.id).where(tenants.c.name == name)) is not None:
                raise Conflict(f"there is a tenant {name!r} already; change it, or choose another name")
            connection.execute(insert(tenants).values(row))
            return _one(connection, name)

    def set(self, name: str, changes: Mapping[str, Any]) -> TenantRow:
        """Change limits (None lifts one) and `weight`, by their names. Raises UnknownTenant."""
        _check(name)
        with self._database.write() as connection:
            if changes:
                connection.execute(update(tenants).where(tenants.c.name == name).values(**changes))
            return _one(connection, name)

    def get(self, name: str) -> TenantRow:
        """Raises UnknownTenant."""
        with self._database.read() as connection:
            return _one(connection, name)

    def page(self, limit: int | None = None, after: str | None = None) -> tuple[list[TenantRow], bool]:
        """Newest first, and whether there are more. Raises UnknownTenant for an `after` that is not there."""
        unknown = UnknownTenant(f"there is no tenant {after!r} to list after")
        if after is not None and not is_name(after):
            raise unknown
        place = {"number": tenants.c.id, "name": tenants.c.name}
        with self._database.read() as connection:
            found, more = page_of(connection, STATEMENT, **place, limit=limit, after=after, unknown=unknown)
        return [_row(row) for row in found], more

    def remove(self, name: str, *, with_adapters: bool = False) -> list[RemovedAdapter]:
        """The tenant with its keys; what went with it, of every base. The replicas hear of it.

        Raises UnknownTenant, and Conflict for `default` and, unless `with_adapters`, where it has adapters.
        """
        if name == DEFAULT_TENANT:
            raise Conflict(f"the tenant {DEFAULT_TENANT!r} is always there; delete its adapters and revoke its keys")
        with self._database.write() as connection:
            lock_tenant(connection, name)
            rows = fetch(connection, adapters.c.tenant == name)
            if rows and not with_adapters:
                count = len({row.name for row in rows})
                has = f"tenant {name!r} has {count} adapter{'' if count == 1 else 's'}"
                raise Conflict(f"{has}: delete them first, or with the tenant (--with-adapters, with_adapters=true)")
            removed = []
            for adapter, own in groupby(sorted(rows, key=_adapter_id), _adapter_id):
                versions = list(own)
                delete_versions(connection, name, adapter, true())
                news = announce(connection, self._database, None, "deleted", versions[0], gone=versions)
                removed.append(RemovedAdapter(versions[0].name, versions[0].base_digest, versions, news))
            connection.execute(delete(keys).where(keys.c.tenant == name))
            connection.execute(delete(tenants).where(tenants.c.name == name))
        return removed


def lock_tenant(connection: Connection, name: str) -> TenantLimits:
    """Until the transaction ends no other one stores anything for the tenant, or removes it. Raises UnknownTenant."""
    _check(name)
    here = select(*(tenants.c[limit] for limit in LIMITS)).where(tenants.c.name == name)
    found = connection.execute(here.with_for_update()).mappings().one_or_none()
    if found is None:
        raise _unknown(name)
    return TenantLimits(**found)


def check_quota(connection: Connection, name: str, limits: TenantLimits) -> None:
    """Raises QuotaExceeded where the transaction left the tenant with more than it may have."""
    if limits.max_adapters is None and limits.max_bytes is None:
        return
    count, size = connection.execute(select(_COUNT, _SIZE).where(tenants.c.name == name)).one()
    if limits.max_adapters is not None and count > limits.max_adapters:
        raise QuotaExceeded(f"this would be adapter {count} of at most {limits.max_adapters}; delete others first")
    if limits.max_bytes is not None and size > limits.max_bytes:
        raise QuotaExceeded(
            f"with this there would be {size} bytes of adapters, at most {limits.max_bytes} are allowed; delete others"
        )


def limits_of(row: Mapping[Any, Any]) -> TenantLimits:
    """From a row that has the tenant's columns."""
    return TenantLimits(**{name: row[name] for name in LIMITS})


def _one(connection: Connection, name: str) -> TenantRow:
    _check(name)
    found = connection.execute(STATEMENT.where(tenants.c.name == name)).mappings().one_or_none()
    if found is None:
        raise _unknown(name)
    return _row(found)


def _check(name: str) -> None:
    """PostgreSQL cannot even be asked for what has a NUL or half a surrogate pair. Raises UnknownTenant."""
    if not is_name(name):
        raise _unknown(name)


def _unknown(name: str) -> UnknownTenant:
    return UnknownTenant(f"there is no tenant {name[:100]!r}")


def _row(found: Mapping[Any, Any]) -> TenantRow:
    own = {name: found[name] for name in ("name", "weight", "created_at", "adapters", "bytes")}
    return TenantRow(**own, limits=limits_of(found))
