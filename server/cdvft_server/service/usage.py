"""Reports of the usage ledger, up to what was used just now."""

from collections.abc import AsyncIterator, Sequence

from cdvft_server.answers import UsageEntry
from cdvft_server.errors import invalid
from cdvft_server.service.parts import Parts
from cdvft_server.store import UsageQuery, UsageRow
from cdvft_server.store.usage import DAY, HOUR, KEYS

__all__ = ["GROUPS", "UsageQuery", "UsageReports"]

GROUPS = tuple(KEYS)
PAGE = 1000  # rows of a long report that are in memory at once
NUMBERS = ("start", "version")


class UsageReports:
    """Methods raise ApiError, and StoreUnavailable."""

    def __init__(self, parts: Parts) -> None:
        self._store, self._ledger, self._workers = parts.store.usage, parts.ledger, parts.workers

    async def page(self, query: UsageQuery, limit: int, after: str | None) -> tuple[list[UsageEntry], bool]:
        """Newest first, and whether there are more behind them."""
        place = None if after is None else _place(query, after)
        await self._ledger.flush()
        rows = await self._workers.run(self._store.report, query, limit + 1, place)
        return [_entry(query, row) for row in rows[:limit]], len(rows) > limit

    async def pages(self, query: UsageQuery, limit: int | None, after: str | None) -> AsyncIterator[list[UsageEntry]]:
        """All of it, or `limit` entries, a page at a time."""
        more = True
        while more and limit != 0:
            entries, more = await self.page(query, PAGE if limit is None else min(limit, PAGE), after)
            limit = None if limit is None else limit - len(entries)
            after = entries[-1].id if entries else after
            yield entries


def _entry(query: UsageQuery, row: UsageRow) -> UsageEntry:
    used, length = row.amounts, DAY if "day" in query.group_by else HOUR
    return UsageEntry(
        id=":".join(str(getattr(row, key)) for key in query.keys),
        start=row.start,
        end=None if row.start is None else row.start + length,
        tenant=row.tenant or query.tenant,
        adapter=row.adapter or query.adapter,
        version=row.version or None,
        digest=row.digest,
        requests=used.requests,
        failed=used.failed,
        cancelled=used.cancelled,
        prompt_tokens=used.prompt_tokens,
        completion_tokens=used.completion_tokens,
        total_tokens=used.prompt_tokens + used.completion_tokens,
        seconds=round(used.seconds, 6),
    )


def _place(query: UsageQuery, id: str) -> Sequence[str | int]:
    """The keys that an entry's id is made of. Raises ApiError for what is no id of this report."""
    texts = id.split(":", len(query.keys) - 1)
    keys = dict(zip(query.keys, texts, strict=False))
    if len(keys) < len(query.keys) or not all(_is_number(keys[name]) for name in NUMBERS if name in keys):
        raise invalid(f"after is {id[:80]!r}; use an entry's id from the same group_by", "after")
    return [int(text) if name in NUMBERS else text for name, text in keys.items()]


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 19
