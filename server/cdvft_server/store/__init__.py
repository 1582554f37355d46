"""Durable adapters of every tenant and base, tenants and keys, in one database. Knows no HTTP, asyncio or tensors."""

from cdvft_server.store.changes import NewVersion, Upload
from cdvft_server.store.keys import SECRET, Candidate, Found, KeyRow, Keys, hash_of, lookup_of
from cdvft_server.store.replicas import GoneVersion, News, Replica
from cdvft_server.store.rows import VersionRow, cache_key
from cdvft_server.store.store import Deleted, Store
from cdvft_server.store.tenants import DEFAULT_TENANT, TenantLimits, TenantRow, Tenants
from cdvft_server.store.unchanged import Unchanged
from cdvft_server.store.usage import Account, Amounts, UsageQuery, UsageRow, UsageStore

__all__ = [
    "DEFAULT_TENANT",
    "SECRET",
    "Account",
    "Amounts",
    "Candidate",
    "Deleted",
    "Found",
    "GoneVersion",
    "KeyRow",
    "Keys",
    "NewVersion",
    "News",
    "Replica",
    "Store",
    "TenantLimits",
    "TenantRow",
    "Tenants",
    "Unchanged",
    "Upload",
    "UsageQuery",
    "UsageRow",
    "UsageStore",
    "VersionRow",
    "cache_key",
    "hash_of",
    "lookup_of",
]
