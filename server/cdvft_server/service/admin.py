"""Tenants and keys, as the admin routes manage them."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any

from cdvft_server.administration import key_body, tenant_body
from cdvft_server.answers import KeyBody, KeyList, KeyRotated, KeySecret, TenantBody, TenantDeleted, TenantList
from cdvft_server.errors import invalid
from cdvft_server.expiry import parse_expiry
from cdvft_server.naming import check_name
from cdvft_server.service.access import Access
from cdvft_server.service.catalog import Catalog
from cdvft_server.service.parts import Parts
from cdvft_server.store import TenantLimits

__all__ = ["Admin"]


class Admin:
    """Methods raise what `faults.translate` knows."""

    def __init__(self, parts: Parts, catalog: Catalog, access: Access) -> None:
        self._store, self._workers, self._base = parts.store, parts.workers, parts.base
        self._catalog, self._access = catalog, access

    async def create_tenant(self, name: str, limits: Mapping[str, Any], weight: float) -> TenantBody:
        check_name("tenant", name)
        made = await self._workers.run(self._store.tenants.create, name, TenantLimits(**limits), weight)
        return tenant_body(made)

    async def set_tenant(self, name: str, changes: Mapping[str, Any]) -> TenantBody:
        """Change what is named; a limit that is None is lifted."""
        return tenant_body(await self._workers.run(self._store.tenants.set, name, changes))

    async def describe_tenant(self, name: str) -> TenantBody:
        return tenant_body(await self._workers.run(self._store.tenants.get, name))

    async def list_tenants(self, limit: int, after: str | None) -> TenantList:
        rows, more = await self._workers.run(self._store.tenants.page, limit, after)
        return TenantList(
            data=[tenant_body(row) for row in rows], has_more=more, last_id=rows[-1].name if rows else None
        )

    async def delete_tenant(self, name: str, with_adapters: bool) -> TenantDeleted:
        """Its keys let nobody in from now on; answers when the requests that use its adapters have ended."""
        gone = await self._workers.run(lambda: self._store.tenants.remove(name, with_adapters=with_adapters))
        self._access.forget(tenant=name)
        here = [own for own in gone if own.base_digest == self._base.digest]
        await asyncio.gather(*(self._catalog.let_go(name, own.name, own.rows, own.news_id) for own in here))
        return TenantDeleted(id=name, adapters_deleted=len({own.name for own in gone}))

    async def create_key(self, tenant: str, scopes: Sequence[str], expires: str | int | None) -> KeySecret:
        """With the secret, which is not told again."""
        now = int(time.time())
        ends = _expiry(expires, now)
        made, secret = await self._workers.run(self._store.keys.create, tenant, scopes, ends, now)
        return KeySecret(**key_body(made).model_dump(), key=secret)

    async def describe_key(self, key_id: str) -> KeyBody:
        return key_body(await self._workers.run(self._store.keys.get, key_id))

    async def list_keys(self, limit: int, after: str | None, tenant: str | None) -> KeyList:
        rows, more = await self._workers.run(self._store.keys.page, limit, after, tenant)
        return KeyList(data=[key_body(row) for row in rows], has_more=more, last_id=rows[-1].id if rows else None)

    async def revoke_key(self, key_id: str) -> KeyBody:
        """No request that comes after the answer is let in by it."""
        revoked = await self._workers.run(self._store.keys.revoke, key_id, int(time.time()))
        self._access.forget(key_id=key_id)
        return key_body(revoked)

    async def rotate_key(self, key_id: str, overlap: int, expires: str | int | None) -> KeyRotated:
        """A new key beside the old one, which ends `overlap` seconds from now."""
        now = int(time.time())
        ends = _expiry(expires, now)
        made, secret, old = await self._workers.run(self._store.keys.rotate, key_id, overlap, ends, now)
        self._access.forget(key_id=key_id)
        return KeyRotated(**key_body(made).model_dump(), key=secret, replaces=key_body(old))


def _expiry(expires: str | int | None, now: int) -> int | None:
    try:
        return None if expires is None else parse_expiry(expires, now)
    except ValueError as error:
        raise invalid(f"expires: {error}", "expires") from None
