"""Pages of what lists are made of: newest first, each behind a place that is named by its last row."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Column, Connection, Select, select

__all__ = ["page_of"]


def page_of(
    connection: Connection,
    rows: Select[Any],
    *,
    number: Column[int],
    name: Column[str],
    limit: int | None,
    after: str | None,
    unknown: Exception,
) -> tuple[Sequence[Mapping[Any, Any]], bool]:
    """At most `limit` of the rows, and whether there are more. `number` counts them up, `after` is the `name` of the
    last one of the page before. Raises `unknown` where there is no such row."""
    rows = rows.order_by(number.desc())
    if after is not None:
        place = connection.scalar(select(number).where(name == after))
        if place is None:
            raise unknown
        rows = rows.where(number < place)
    found = connection.execute(rows.limit(None if limit is None else limit + 1)).mappings().all()
    return found[:limit], limit is not None and len(found) > limit
