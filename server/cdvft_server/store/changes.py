"""Writing a version: its number, its pointers, its files, all on the caller's transaction."""

import time
from dataclasses import dataclass
from typing import Any

from cdvft.files import AdapterFiles
from sqlalchemy import ColumnElement, Connection, Insert, Update, delete, func, insert, not_, select, update

from cdvft_server.store.blobs import release_files, repair_files, store_files
from cdvft_server.store.rows import LATEST, VersionRow, fetch, of_adapter
from cdvft_server.store.tables import adapters, aliases, names, versions

__all__ = ["NewVersion", "Upload", "delete_versions", "mend", "point", "put"]


@dataclass(frozen=True)
class NewVersion:
    """Validated content. `summary` is JSON: what the API tells about it besides what the store knows itself."""

    files: AdapterFiles
    digest: str
    base_digest: str
    form_labels: list[str] | None
    summary: dict[str, Any]


@dataclass(frozen=True)
class Upload:
    """Content for a name. `public` and `description` None leave what the name has (at first: private, none)."""

    name: str
    new: NewVersion
    alias: str | None = None
    public: bool | None = None
    description: str | None = None


def put(connection: Connection, tenant: str, upload: Upload) -> tuple[VersionRow, bool]:
    """The version of that content, and whether it is new."""
    adapter = _adapter_id(connection, tenant, upload.name, upload.new.base_digest)
    same = (versions.c.adapter_id == adapter) & (versions.c.digest == upload.new.digest)
    found = connection.execute(select(versions.c.id, versions.c.version).where(same)).one_or_none()
    if found is None:
        number = _next_number(connection, tenant, upload.name)
        version_id = _insert(connection, adapter, number, upload.new)
        store_files(connection, tenant, version_id, upload.new.files)
        if point(connection, adapter, LATEST, number):
            _update(connection, adapter, position=version_id)
    else:
        version_id, number = found
        if repair_files(connection, tenant, version_id, upload.new.files):
            connection.execute(_of(version_id).values(bytes=upload.new.files.size))
    if upload.alias is not None:
        point(connection, adapter, upload.alias, number)
    if upload.public is not None:
        _update(connection, adapter, public=upload.public)
    if upload.description is not None:
        _update(connection, adapter, description=upload.description)
    [row] = fetch(connection, versions.c.id == version_id)
    return row, found is None


def mend(connection: Connection, row: VersionRow, new: NewVersion) -> VersionRow:
    """Write anew what the content tells; counts and times are kept where they are numbers."""
    whole = {
        "created_at": row.created_at if isinstance(row.created_at, int) else int(time.time()),
        "bytes": row.bytes if isinstance(row.bytes, int) else new.files.size,
        "hits": row.hits if isinstance(row.hits, int) else 0,
        "last_used": row.last_used if isinstance(row.last_used, int) else None,
    }
    connection.execute(_of(row.id).values(form_labels=new.form_labels, summary=new.summary, **whole))
    if not isinstance(row.description, str | None):
        _update(connection, row.adapter_id, description=None)
    [mended] = fetch(connection, versions.c.id == row.id)
    return mended


def point(connection: Connection, adapter: int, alias: str, version: int) -> bool:
    """Move an alias, or make it; whether it was made."""
    pointer = (aliases.c.adapter_id == adapter) & (aliases.c.alias == alias)
    if connection.execute(update(aliases).where(pointer).values(version=version)).rowcount:
        return False
    connection.execute(insert(aliases).values(adapter_id=adapter, alias=alias, version=version))
    return True


def delete_versions(connection: Connection, tenant: str, adapter: int, doomed: ColumnElement[bool]) -> int:
    """Delete the adapter's versions that are doomed; the bytes freed.

    `latest` falls to the highest version that is left; with the last one all aliases go, visibility, description, pin.
    """
    freed = release_files(connection, tenant, select(versions.c.id).where(versions.c.adapter_id == adapter, doomed))
    left = select(func.max(versions.c.version)).where(versions.c.adapter_id == adapter, not_(doomed))
    highest = connection.scalar(left)
    if highest is None:
        connection.execute(delete(aliases).where(aliases.c.adapter_id == adapter))
        _update(connection, adapter, public=False, description=None, pinned=False)
    else:
        going = select(versions.c.version).where(versions.c.adapter_id == adapter, doomed)
        latest = (aliases.c.adapter_id == adapter) & (aliases.c.alias == LATEST) & aliases.c.version.in_(going)
        connection.execute(update(aliases).where(latest).values(version=highest))
    connection.execute(delete(versions).where(versions.c.adapter_id == adapter, doomed))
    return freed


def _adapter_id(connection: Connection, tenant: str, name: str, base_digest: str) -> int:
    found = connection.scalar(select(adapters.c.id).where(*of_adapter(tenant, name, base_digest)))
    if found is not None:
        return int(found)
    row = {"tenant": tenant, "name": name, "base_digest": base_digest, "position": 0, "public": False}
    return _inserted(connection, insert(adapters).values(row))


def _next_number(connection: Connection, tenant: str, name: str) -> int:
    here = (names.c.tenant == tenant) & (names.c.name == name)
    highest = connection.scalar(select(names.c.highest).where(here).with_for_update())
    if highest is None:
        connection.execute(insert(names).values(tenant=tenant, name=name, highest=1))
        return 1
    connection.execute(update(names).where(here).values(highest=highest + 1))
    return int(highest) + 1


def _insert(connection: Connection, adapter: int, number: int, new: NewVersion) -> int:
    row = {
        "adapter_id": adapter,
        "version": number,
        "digest": new.digest,
        "created_at": int(time.time()),
        "bytes": new.files.size,
        "form_labels": new.form_labels,
        "summary": new.summary,
        "hits": 0,
    }
    return _inserted(connection, insert(versions).values(row))


def _of(version_id: int) -> Update:
    return update(versions).where(versions.c.id == version_id)


def _inserted(connection: Connection, statement: Insert) -> int:
    """The id of the new row."""
    key = connection.execute(statement).inserted_primary_key
    assert key is not None  # these tables count their ids up
    return int(key[0])


def _update(connection: Connection, adapter: int, **values: Any) -> None:
    connection.execute(update(adapters).where(adapters.c.id == adapter).values(**values))
