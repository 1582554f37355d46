"""Durable adapters of every tenant and base, in one database. Knows no HTTP, no asyncio and no tensors."""

from cdvft_server.store.changes import NewVersion, Upload
from cdvft_server.store.replicas import GoneVersion, News, Replica
from cdvft_server.store.rows import VersionRow
from cdvft_server.store.store import Deleted, Store
from cdvft_server.store.usage import Account, Amounts, UsageQuery, UsageRow, UsageStore

__all__ = [
    "Account",
    "Amounts",
    "Deleted",
    "GoneVersion",
    "NewVersion",
    "News",
    "Replica",
    "Store",
    "Upload",
    "UsageQuery",
    "UsageRow",
    "UsageStore",
    "VersionRow",
]
