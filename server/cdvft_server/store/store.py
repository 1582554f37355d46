"""Adapters: versions, aliases and their files, of every tenant and base, in one database.

Every method is one transaction, sees and changes only rows of the base it is given, and may be called from any thread.
All raise StoreUnavailable. `tenants` and `keys` have methods of the same kind. Names are checked by `naming` before
they come here.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from cdvft.files import AdapterFiles
from sqlalchemy import ColumnElement, Connection, bindparam, case, delete, exists, insert, select, true, update

from cdvft_server.exceptions import AmbiguousDigest, Conflict, NotFound
from cdvft_server.naming import AdapterRef, DigestPrefix
from cdvft_server.store.blobs import read_files
from cdvft_server.store.changes import NewVersion, Upload, delete_versions, mend, point, put
from cdvft_server.store.database import FILE_SECONDS, Database
from cdvft_server.store.keys import Keys
from cdvft_server.store.missing import no_adapter, not_there
from cdvft_server.store.replicas import Replica, announce
from cdvft_server.store.rows import LATEST, VersionRow, fetch, numbered, of_adapter, pointed_at, selected, visible
from cdvft_server.store.tables import adapters, aliases, steps, versions
from cdvft_server.store.tenants import Tenants, check_quota, lock_tenant
from cdvft_server.store.usage import UsageStore

__all__ = ["Deleted", "Store"]


@dataclass(frozen=True)
class Deleted:
    """`bytes_freed` counts stored bytes: a file that another version of the tenant also has is kept and not counted.
    `news_id`: what the other replicas are told by."""

    rows: list[VersionRow]
    bytes_freed: int
    news_id: int


class Store:
    """See the module. `open` makes or upgrades the database; `close` waits for nothing."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._author: str | None = None
        self.tenants, self.keys, self.usage = Tenants(database), Keys(database), UsageStore(database)

    @classmethod
    def open(cls, url: str) -> "Store":
        """Raises UnsupportedDatabase for what is no store, or a newer one."""
        return cls(Database(url))

    def close(self) -> None:
        self._database.close()

    def as_replica(self, base_digest: str) -> Replica:
        """This server among those on the database; it is not told of what is done through this store."""
        replica = Replica(self._database, base_digest)
        self._author = replica.id
        return replica

    def changes(self) -> int | None:
        """A number that is another once anybody has written to the database, for `Unchanged`; None where that cannot
        be told at once. For one thread."""
        return self._database.changes()

    def ping(self) -> None:
        """Returns if the database answers and is the one that was opened."""
        self._database.check_file()
        with self._database.read() as connection:
            connection.execute(select(1))

    def put_version(
        self,
        tenant: str,
        name: str,
        new: NewVersion,
        *,
        alias: str | None = None,
        public: bool | None = None,
        description: str | None = None,
        step: str | None = None,
    ) -> tuple[VersionRow, bool]:
        """The version, and whether it is a new one.

        New content gets the highest version ever + 1 and moves `latest` to it. Content that the name already has on
        this base is found again and moves nothing. An explicit `alias` moves in any case. `step` is recorded with it.
        Raises UnknownTenant, and QuotaExceeded where new content leaves the tenant with more than it may have.
        """
        upload = Upload(name, new, alias, public, description)
        with self._database.write() as connection:
            limits = lock_tenant(connection, tenant)
            outcome = put(connection, tenant, upload)
            self._announce_pin(connection, outcome[0])
            if outcome[1]:
                check_quota(connection, tenant, limits)
            if step is not None and not _is_done(connection, step):
                _record(connection, step)
        return outcome

    def mend(self, row: VersionRow, new: NewVersion) -> VersionRow:
        """A row that is damaged, written anew from the same content. Raises NotFound where it was deleted."""
        with self._database.write() as connection:
            if not fetch(connection, versions.c.id == row.id):
                raise no_adapter(row.name, row.version)
            return mend(connection, row, new)

    def put_step(self, tenant: str, step: str, uploads: Sequence[Upload]) -> list[tuple[VersionRow, bool]]:
        """All uploads and the record of the step, or, where the step was recorded before, nothing and []."""
        with self._database.write() as connection:
            if _is_done(connection, step):
                return []
            outcomes = [put(connection, tenant, upload) for upload in uploads]
            _record(connection, step)
        return outcomes

    def step_done(self, name: str) -> bool:
        with self._database.read() as connection:
            return _is_done(connection, name)

    def record_step(self, name: str) -> None:
        """Idempotent."""
        with self._database.write() as connection:
            if not _is_done(connection, name):
                _record(connection, name)

    def resolve(self, tenant: str, ref: AdapterRef, base_digest: str) -> VersionRow:
        """What the reference means to this tenant now: its own adapter, or another tenant's public one.

        Raises NotFound, and AmbiguousDigest where several versions have the digest prefix.
        """
        owner = tenant if ref.tenant is None else ref.tenant
        with self._database.read() as connection:
            conditions = (*of_adapter(owner, ref.name, base_digest), visible(tenant), selected(ref.selector))
            found = fetch(connection, *conditions)
            if not found:
                raise not_there(ref, fetch(connection, *of_adapter(owner, ref.name, base_digest), visible(tenant)))
        if len(found) > 1 and isinstance(ref.selector, DigestPrefix):
            numbers = ", ".join(str(row.version) for row in found[:10])
            raise AmbiguousDigest(f"{ref.selector.prefix} is the beginning of versions {numbers} of {ref.name!r}")
        return found[0]

    def list_adapters(
        self, tenant: str, base_digest: str, limit: int | None = None, after: str | None = None
    ) -> tuple[list[VersionRow], bool]:
        """The `latest` version of each of the tenant's adapters, and whether there are more: newest adapter first, by
        when its name was last new. `after` is the name where the list before ended, which may be deleted since.

        Raises NotFound for an `after` that never existed.
        """
        own = (adapters.c.tenant == tenant, adapters.c.base_digest == base_digest)
        live = aliases.c.alias == LATEST
        page = select(adapters.c.id).join(aliases, aliases.c.adapter_id == adapters.c.id).where(*own, live)
        with self._database.read() as connection:
            if after is not None:
                place = connection.scalar(select(adapters.c.position).where(*of_adapter(tenant, after, base_digest)))
                if place is None:
                    raise NotFound(f"there is no adapter {after!r} to list after")
                page = page.where(adapters.c.position < place)
            page = page.order_by(adapters.c.position.desc()).limit(None if limit is None else limit + 1)
            found = fetch(connection, adapters.c.id.in_(page), pointed_at(LATEST))
        return (found, False) if limit is None else (found[:limit], len(found) > limit)

    def list_versions(self, tenant: str, name: str, base_digest: str) -> list[VersionRow]:
        """Newest first. Raises NotFound."""
        with self._database.read() as connection:
            found = fetch(connection, *of_adapter(tenant, name, base_digest))
        if not found:
            raise no_adapter(name)
        return found

    def get(self, tenant: str, name: str, base_digest: str, version: int | None = None) -> VersionRow:
        """That version, or the one `latest` points at. Raises NotFound."""
        with self._database.read() as connection:
            return _one(connection, tenant, name, base_digest, version)

    def files(self, version_id: int) -> AdapterFiles:
        """The files of its first upload. Raises NotFound for a deleted version, CorruptBlob where they changed."""
        with self._database.read(FILE_SECONDS) as connection:
            return read_files(connection, version_id)

    def set_alias(self, tenant: str, name: str, alias: str, version: int, base_digest: str) -> VersionRow:
        """Point an alias, or `latest`, at a version; then the row that `latest` points at. Raises NotFound."""
        with self._database.write() as connection:
            row = _one(connection, tenant, name, base_digest, version)
            point(connection, row.adapter_id, alias, row.version)
            self._announce_pin(connection, row)
            return _one(connection, tenant, name, base_digest)

    def delete_alias(self, tenant: str, name: str, alias: str, base_digest: str) -> VersionRow:
        """The row that `latest` points at. Raises NotFound, and Conflict for `latest` itself."""
        with self._database.write() as connection:
            row = _one(connection, tenant, name, base_digest)
            if alias == LATEST:
                raise Conflict(f"{LATEST!r} cannot be removed from {name!r}; move it, or delete versions", [LATEST])
            if alias not in row.aliases:
                raise NotFound(f"adapter {name!r} has no alias {alias!r}")
            pointer = (aliases.c.adapter_id == row.adapter_id) & (aliases.c.alias == alias)
            connection.execute(delete(aliases).where(pointer))
            return _one(connection, tenant, name, base_digest)

    def set_pinned(self, tenant: str, name: str, pinned: bool, base_digest: str) -> VersionRow:
        """The row that `latest` points at. Raises NotFound."""
        with self._database.write() as connection:
            row = _one(connection, tenant, name, base_digest)
            connection.execute(update(adapters).where(adapters.c.id == row.adapter_id).values(pinned=pinned))
            announce(connection, self._database, self._author, "pinned", row)
            return replace(row, pinned=pinned)

    def pinned(self, base_digest: str) -> list[VersionRow]:
        """The `latest` version of each pinned adapter of every tenant, most recently used first."""
        here = (adapters.c.base_digest == base_digest, adapters.c.pinned)
        with self._database.read() as connection:
            return sorted(fetch(connection, *here, pointed_at(LATEST)), key=_last_use, reverse=True)

    def recent(self, base_digest: str, limit: int | None = None) -> list[VersionRow]:
        """Versions of every tenant: first those that were used, the last one first, then the `latest` ones that never
        were, newest first."""
        live = exists().where(
            aliases.c.adapter_id == versions.c.adapter_id,
            aliases.c.version == versions.c.version,
            aliases.c.alias == LATEST,
        )
        wanted = (adapters.c.base_digest == base_digest) & (versions.c.last_used.is_not(None) | live)
        ids = select(versions.c.id).join(adapters, versions.c.adapter_id == adapters.c.id).where(wanted)
        ids = ids.order_by(versions.c.last_used.desc().nulls_last(), versions.c.id.desc()).limit(limit)
        with self._database.read() as connection:
            return sorted(fetch(connection, versions.c.id.in_(ids)), key=_last_use, reverse=True)

    def delete(self, tenant: str, name: str, version: int | None, base_digest: str) -> Deleted:
        """One version, or with None the whole name with its aliases.

        `latest` falls to the highest version that is left. Raises NotFound, and Conflict where an alias other than
        `latest` points at the version.
        """
        with self._database.write() as connection:
            rows = fetch(connection, *of_adapter(tenant, name, base_digest), _is(version))
            if not rows:
                raise no_adapter(name, version)
            holders = [alias for alias, target in rows[0].aliases.items() if target == version and alias != LATEST]
            if holders:
                raise Conflict(
                    f"version {version} of {name!r} is in use by alias {', '.join(holders)}: move or delete that first",
                    holders,
                )
            freed = delete_versions(connection, tenant, rows[0].adapter_id, _is(version))
            told = announce(connection, self._database, self._author, "deleted", rows[0], gone=rows)
            self._announce_pin(connection, rows[0])
        return Deleted(rows, freed, told)

    def count_hits(self, hits: Mapping[int, int], now: int) -> None:
        """Add to each version's hits, by id; deleted ones are passed over. `now` is in unix seconds."""
        if not hits:
            return
        counted = update(versions).where(versions.c.id == bindparam("key"))
        later = case((versions.c.last_used > now, versions.c.last_used), else_=now)
        counted = counted.values(hits=versions.c.hits + bindparam("more"), last_used=later)
        with self._database.write() as connection:
            connection.execute(counted, [{"key": key, "more": more} for key, more in hits.items()])

    def _announce_pin(self, connection: Connection, row: VersionRow) -> None:
        """What `latest` names may be another version now."""
        if row.pinned:
            announce(connection, self._database, self._author, "pinned", row)


def _one(connection: Connection, tenant: str, name: str, base_digest: str, version: int | None = None) -> VersionRow:
    """That version, or the one `latest` points at. Raises NotFound."""
    which = pointed_at(LATEST) if version is None else numbered(version)
    found = fetch(connection, *of_adapter(tenant, name, base_digest), which)
    if not found:
        others = [row.version for row in fetch(connection, *of_adapter(tenant, name, base_digest))]
        raise no_adapter(name, version if others else None, others)
    return found[0]


def _last_use(row: VersionRow) -> tuple[int, int]:
    """Orders by use, then by age; what a damaged database holds there counts as never used."""
    return (row.last_used if isinstance(row.last_used, int) else -1), row.id


def _is(version: int | None) -> ColumnElement[bool]:
    return true() if version is None else numbered(version)


def _is_done(connection: Connection, step: str) -> bool:
    return connection.scalar(select(steps.c.name).where(steps.c.name == step)) is not None


def _record(connection: Connection, step: str) -> None:
    connection.execute(insert(steps).values(name=step, done_at=int(time.time())))
