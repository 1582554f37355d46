"""What is stored, as the API describes it; aliases, downloads and deletes."""

import asyncio
import io
import time
import zipfile
from collections.abc import Collection
from dataclasses import dataclass

from cdvft_server.answers import AdapterBody, AdapterDetails, ModelBody, SelfTest
from cdvft_server.errors import ApiError
from cdvft_server.naming import MAX_VERSION, check_name, parse_version
from cdvft_server.service.access import Caller
from cdvft_server.service.deletes import Deletes
from cdvft_server.service.parts import Parts
from cdvft_server.service.pins import Pins
from cdvft_server.service.replication import Replication
from cdvft_server.service.residency import Residency
from cdvft_server.service.stored import check_whole, is_whole
from cdvft_server.service.targets import Target
from cdvft_server.store import GoneVersion, VersionRow

__all__ = ["Catalog", "Page"]

ALL = 100  # rows of one page where every adapter is wanted


@dataclass(frozen=True)
class Page:
    rows: list[AdapterDetails]
    has_more: bool


class Catalog:
    """The adapters of one base. Methods raise what `faults.translate` knows."""

    def __init__(
        self, parts: Parts, residency: Residency, pins: Pins, deletes: Deletes, replication: Replication
    ) -> None:
        self._base, self._store, self._workers = parts.base, parts.store, parts.workers
        self._hits, self._residency, self._pins = parts.hits, residency, pins
        self._deletes, self._replication = deletes, replication
        self._delete_wait_seconds = parts.config.delete_wait_seconds
        self._started = int(time.time())

    def body(self, row: VersionRow, ignored: Collection[str] | None = None) -> AdapterBody:
        """What an upload answers. Raises CorruptBlob for a row that is damaged."""
        check_whole(row)
        summary = row.summary
        return AdapterBody(
            id=row.name,
            name=row.name,
            version=row.version,
            digest=row.digest,
            method=summary["method"],
            base_model=self._base.name,
            base_verified=summary["base_verified"],
            task=summary["task"],
            labels=summary["labels"],
            num_parameters=summary["num_parameters"],
            head_parameters=summary["head_parameters"],
            bytes=row.bytes,
            sites=summary["sites"],
            aliases=row.aliases,
            public=row.public,
            description=row.description,
            created_at=int(row.created_at),
            self_test=SelfTest(**summary["self_test"]),
            ignored_files=list(summary["ignored_files"] if ignored is None else ignored),
        )

    def details(self, row: VersionRow) -> AdapterDetails:
        """The same with what changes by use."""
        hits, last = self._hits.pending(row.id)
        last = last or row.last_used
        return AdapterDetails(
            **self.body(row).model_dump(),
            residency=self._residency.of(row.key),
            hits=row.hits + hits,
            last_used=None if last is None else int(last),
            pinned=row.pinned and row.is_latest,
        )

    async def list_adapters(self, tenant: str, limit: int, after: str | None) -> Page:
        """Newest first, each name once, as its latest version. What is damaged in the store is left out and logged."""
        rows, more = await self._latest(tenant, limit, after)
        return Page([self.details(row) for row in rows], more)

    async def list_versions(self, tenant: str, name: str, limit: int, after: str | None) -> Page:
        """Newest first, without damaged ones; `after` is a version's number."""
        rows = await self._workers.run(self._store.list_versions, tenant, name, self._base.digest)
        if after is not None:
            last = _version(name, after)
            rows = [row for row in rows if row.version < last]
        rows = [row for row in rows if is_whole(row)]
        return Page([self.details(row) for row in rows[:limit]], len(rows) > limit)

    async def describe(self, tenant: str, name: str) -> AdapterDetails:
        """The version that `latest` names."""
        return self.details(await self._workers.run(self._store.get, tenant, name, self._base.digest))

    async def download(self, tenant: str, name: str, version: str | None) -> bytes:
        """A zip of the files as they were uploaded first."""
        number = None if version is None else _version(name, version)
        return await self._workers.run_long(self._zip, tenant, name, number)

    async def set_alias(self, tenant: str, name: str, alias: str, version: int) -> AdapterDetails:
        check_name("alias", alias)
        if version > MAX_VERSION:
            raise ApiError("model_not_found", f"{name!r} has no such version", "version")
        row = await self._workers.run(self._store.set_alias, tenant, name, alias, version, self._base.digest)
        if row.pinned:
            await self._pins.follow(tenant, name)
        return self.details(row)

    async def set_pinned(self, caller: Caller, name: str, pinned: bool) -> AdapterDetails:
        """Keep what `latest` names on the device, or no longer.

        Raises ApiError conflict where it does not fit, and where a caller without the scope `admin` would leave others
        less memory than its tenant's pins take.
        """
        shares = caller.key_id is not None and "admin" not in caller.scopes
        return self.details(await self._pins.set(caller.tenant, name, pinned, shares=shares))

    async def delete_alias(self, tenant: str, name: str, alias: str) -> AdapterDetails:
        return self.details(await self._workers.run(self._store.delete_alias, tenant, name, alias, self._base.digest))

    async def delete(self, tenant: str, name: str, version: str | None) -> int:
        """Hide at once, on all replicas, wait for the calls in flight on each, and give the rows' memory back; the
        bytes freed in the store."""
        number = None if version is None else _version(name, version)
        deleted = await self._workers.run(self._store.delete, tenant, name, number, self._base.digest)
        await self.let_go(tenant, name, deleted.rows, deleted.news_id)
        if any(row.pinned for row in deleted.rows):
            await self._pins.follow(tenant, name)
        return deleted.bytes_freed

    async def let_go(self, tenant: str, name: str, rows: Collection[VersionRow], news_id: int) -> None:
        """Of versions that were deleted: on each replica, wait for the calls in flight, then give the memory back."""
        gone = [GoneVersion(row.id, row.adapter_id, row.digest) for row in rows]
        await asyncio.gather(
            self._deletes.clear(tenant, name, gone),
            self._replication.others_have_done(news_id, self._delete_wait_seconds),
        )

    async def models(self, tenant: str) -> list[ModelBody]:
        """The base, then the caller's adapters."""
        rows, after, more = [], None, True
        while more:
            page, more = await self._latest(tenant, ALL, after)
            rows += page
            after = page[-1].name if page else None
        return [self.model(Target(self._base.name, self._base.digest)), *(self.model_of(tenant, row) for row in rows)]

    async def _latest(self, tenant: str, limit: int, after: str | None) -> tuple[list[VersionRow], bool]:
        """Up to `limit` whole rows, and whether there may be more."""
        rows: list[VersionRow] = []
        more = True
        while more and len(rows) < limit:
            left = limit - len(rows)
            page, more = await self._workers.run(self._store.list_adapters, tenant, self._base.digest, left, after)
            rows += [row for row in page if is_whole(row)]
            after = page[-1].name if page else after
        return rows, more

    def model(self, target: Target) -> ModelBody:
        """One line of `/v1/models`."""
        if target.row is None:
            return ModelBody(
                id=target.name, created=self._started, owned_by="cdvft", parent=None, root=self._base.digest
            )
        created = int(target.row.created_at)
        return ModelBody(
            id=target.name, created=created, owned_by=target.row.tenant, parent=self._base.name, root=target.digest
        )

    def model_of(self, tenant: str, row: VersionRow) -> ModelBody:
        name = row.name if row.tenant == tenant else f"{row.tenant}/{row.name}"
        return self.model(Target(name, row.digest, row))

    def _zip(self, tenant: str, name: str, version: int | None) -> bytes:
        row = self._store.get(tenant, name, self._base.digest, version)
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w", zipfile.ZIP_STORED) as archive:
            for file, data in self._store.files(row.id).named().items():
                archive.writestr(zipfile.ZipInfo(file), data)
        return content.getvalue()


def _version(name: str, text: str) -> int:
    version = parse_version(text)
    if version is None:
        raise ApiError("model_not_found", f"{name!r} has no version {text[:40]!r}; versions are 1, 2, ...", "version")
    return version
