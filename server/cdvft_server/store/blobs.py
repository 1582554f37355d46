"""Adapters' files as blobs, keyed by the hash of their bytes within a tenant, gone with their last version."""

import hashlib

from cdvft.files import AdapterFiles
from sqlalchemy import Connection, LargeBinary, Select, bindparam, cast, delete, exists, insert, select, update

from cdvft_server.exceptions import CorruptBlob, NotFound
from cdvft_server.store.tables import blobs, version_files, versions

__all__ = ["read_files", "release_files", "repair_files", "store_files"]

DATA = cast(blobs.c.data, LargeBinary)  # bytes, whatever a damaged row holds: SQLite's columns take any type
SAME = (blobs.c.tenant == version_files.c.tenant) & (blobs.c.sha256 == version_files.c.sha256)
FILES = (
    select(version_files.c.file, version_files.c.sha256, DATA)
    .select_from(version_files.join(blobs, SAME, isouter=True))
    .where(version_files.c.version_id == bindparam("key"))
)
"""Once: a statement costs half a millisecond to put together."""


def store_files(connection: Connection, tenant: str, version_id: int, files: AdapterFiles) -> None:
    for file, data in _contents(files).items():
        key = hashlib.sha256(data).hexdigest()
        _store_blob(connection, tenant, key, data)
        connection.execute(insert(version_files).values(version_id=version_id, file=file, tenant=tenant, sha256=key))


def repair_files(connection: Connection, tenant: str, version_id: int, files: AdapterFiles) -> bool:
    """Content came again: see that the stored files are whole. True where some were not and the same bytes did not
    come: then all of them are this upload's now."""
    of_version = version_files.c.version_id == version_id
    stored = dict(connection.execute(select(version_files.c.file, version_files.c.sha256).where(of_version)).all())
    came = {file: (hashlib.sha256(data).hexdigest(), data) for file, data in _contents(files).items()}
    for key, data in came.values():
        if key in stored.values():
            _store_blob(connection, tenant, key, data)
    if stored == {file: key for file, (key, _) in came.items()}:
        return False
    if stored.keys() == came.keys() and _are_whole(connection, version_id):
        return False
    release_files(connection, tenant, select(versions.c.id).where(versions.c.id == version_id))
    store_files(connection, tenant, version_id, files)
    return True


def read_files(connection: Connection, version_id: int) -> AdapterFiles:
    """Raises NotFound for a deleted version, CorruptBlob where the bytes are not those that were stored."""
    contents: dict[str, bytes] = {}
    for file, key, data in connection.execute(FILES, {"key": version_id}):
        if data is None or hashlib.sha256(data).hexdigest() != key:
            raise CorruptBlob(f"the stored {file} of version id {version_id} no longer has the hash sha256:{key}")
        contents[file] = data
    if not contents:
        raise NotFound(f"version id {version_id} was deleted")
    if not contents.keys() >= {"config", "weights"}:
        raise CorruptBlob(f"version id {version_id} has lost a file; it has {', '.join(sorted(contents))}")
    return AdapterFiles(**contents)


def release_files(connection: Connection, tenant: str, version_ids: Select[tuple[int]]) -> int:
    """Take the files from the versions that the query selects; the bytes of those that no other version has."""
    used_by_them = version_files.c.version_id.in_(version_ids)
    keys = connection.scalars(select(version_files.c.sha256).where(used_by_them).distinct()).all()
    connection.execute(delete(version_files).where(used_by_them))
    freed = 0
    for key in keys:
        unused = (blobs.c.tenant == tenant) & (blobs.c.sha256 == key)
        unused &= ~exists().where(version_files.c.tenant == tenant, version_files.c.sha256 == key)
        size = connection.scalar(select(blobs.c.size).where(unused))
        freed += size if isinstance(size, int) else 0
        connection.execute(delete(blobs).where(unused))
    return freed


def _are_whole(connection: Connection, version_id: int) -> bool:
    try:
        read_files(connection, version_id)
    except CorruptBlob:
        return False
    return True


def _contents(files: AdapterFiles) -> dict[str, bytes]:
    return {field: data for field, data in vars(files).items() if data is not None}


def _store_blob(connection: Connection, tenant: str, key: str, data: bytes) -> None:
    here = (blobs.c.tenant == tenant) & (blobs.c.sha256 == key)
    stored = connection.scalar(select(DATA).where(here))
    if stored is None:
        connection.execute(insert(blobs).values(tenant=tenant, sha256=key, size=len(data), data=data))
    elif stored != data:
        connection.execute(update(blobs).where(here).values(size=len(data), data=data))
