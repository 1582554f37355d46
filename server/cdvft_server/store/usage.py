"""The usage ledger: what each tenant used of each adapter, by the hour. Added to by all servers of one database."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Select,
    and_,
    delete,
    func,
    insert,
    literal,
    or_,
    select,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from cdvft_server.store.database import Database
from cdvft_server.store.tables import usage, usage_writers

__all__ = ["DAY", "HOUR", "KEYS", "Account", "Amounts", "UsageQuery", "UsageRow", "UsageStore"]

HOUR, DAY = 3600, 86400
FORGET_SECONDS = 30 * DAY  # after which a server that stopped writing is not remembered
INSERTS: Mapping[str, Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}


@dataclass(frozen=True, order=True, slots=True)
class Account:
    """Who used what. `adapter` is as the tenant writes it: with its owner where that is another; `version` 0 and
    `digest` equal to `base_digest` for the base itself."""

    tenant: str
    adapter: str
    version: int
    digest: str
    base_digest: str


@dataclass(slots=True)
class Amounts:
    """`requests` are API calls; of these `failed` and `cancelled` did not end well. `seconds` are the engine's."""

    requests: int = 0
    failed: int = 0
    cancelled: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0

    def __bool__(self) -> bool:
        return any(getattr(self, name) for name in AMOUNTS)

    def __iadd__(self, other: "Amounts") -> "Amounts":
        for name in AMOUNTS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        return self

    def __sub__(self, other: "Amounts") -> "Amounts":
        return Amounts(*(getattr(self, name) - getattr(other, name) for name in AMOUNTS))


AMOUNTS = tuple(field.name for field in fields(Amounts))


@dataclass(frozen=True)
class UsageRow:
    """Amounts of one group. What the groups do not differ in is None. `start`: unix seconds of the hour or day."""

    start: int | None
    tenant: str | None
    adapter: str | None
    version: int | None
    digest: str | None
    amounts: Amounts


KEYS: Mapping[str, Sequence[str]] = {
    "hour": ("start",),
    "day": ("start",),
    "tenant": ("tenant",),
    "adapter": ("adapter",),
    "version": ("adapter", "version", "digest"),
}
"""What one may group by, and what each makes groups differ in."""


@dataclass(frozen=True)
class UsageQuery:
    """Rows from `start` on and before `end`, in unix seconds: of whole hours, those that the two are in included.
    `tenant` None: all of them. `group_by`: of KEYS, not hour and day both.
    """

    tenant: str | None
    group_by: Sequence[str] = ("adapter",)
    start: int | None = None
    end: int | None = None
    adapter: str | None = None

    @property
    def keys(self) -> list[str]:
        """What its groups differ in, in the order of the rows."""
        wanted = {key for name in self.group_by for key in KEYS[name]}
        return [name for name in UsageRow.__dataclass_fields__ if name in wanted]


class UsageStore:
    """Every method is one transaction and may be called from any thread. All raise StoreUnavailable."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, writer: str, batch: int, used: Mapping[tuple[int, Account], Amounts]) -> None:
        """Add to what is there, by (hour, account). A writer numbers its batches from 1; one that was added before
        changes nothing, so that it may be sent again where nobody knows whether it arrived."""
        if not used:
            return
        with self._database.write() as connection:
            if not _is_next(connection, writer, batch):
                return
            new = INSERTS[connection.dialect.name](usage)
            more = {name: usage.c[name] + new.excluded[name] for name in AMOUNTS}
            rows = [_row(hour, account, amounts) for (hour, account), amounts in sorted(used.items(), key=_place)]
            connection.execute(new.on_conflict_do_update(index_elements=list(usage.primary_key), set_=more), rows)

    def report(self, query: UsageQuery, limit: int, after: Sequence[str | int] | None = None) -> list[UsageRow]:
        """At most `limit` groups, newest first, then by tenant, adapter and version. `after`: the last one's keys."""
        with self._database.read() as connection:
            found = connection.execute(_statement(query, after).limit(limit)).mappings().all()
        return [_group(row) for row in found]


def _is_next(connection: Connection, writer: str, batch: int) -> bool:
    """Whether this batch is new; it is recorded then."""
    now = int(time.time())
    known = usage_writers.c.writer == writer
    changed = update(usage_writers).where(known, usage_writers.c.batch < batch).values(batch=batch, written_at=now)
    if connection.execute(changed).rowcount:
        return True
    if connection.scalar(select(usage_writers.c.batch).where(known)) is not None:
        return False
    connection.execute(insert(usage_writers).values(writer=writer, batch=batch, written_at=now))
    connection.execute(delete(usage_writers).where(usage_writers.c.written_at < now - FORGET_SECONDS))
    return True


def _place(item: tuple[tuple[int, Account], Amounts]) -> tuple[int, Account]:
    """All writers lock rows in one order."""
    return item[0]


def _row(hour: int, account: Account, amounts: Amounts) -> dict[str, Any]:
    names = Account.__dataclass_fields__
    amount = {name: getattr(amounts, name) for name in AMOUNTS}
    return {"hour": hour, **{name: getattr(account, name) for name in names}, **amount}


def _statement(query: UsageQuery, after: Sequence[str | int] | None) -> Select[Any]:
    keys = {name: _key(query, name) for name in query.keys}
    amounts = [func.sum(usage.c[name]).label(name) for name in AMOUNTS]
    statement = select(*(key.label(name) for name, key in keys.items()), *amounts).where(*_conditions(query))
    if after is not None:
        statement = statement.where(_behind(keys, after))
    order = [key.desc() if name in NEWEST_FIRST else key for name, key in keys.items()]
    return statement.group_by(*keys.values()).order_by(*order)


NEWEST_FIRST = ("start", "version")


def _key(query: UsageQuery, name: str) -> ColumnElement[Any]:
    if name != "start":
        return usage.c[name]
    hour: Column[int] = usage.c.hour
    day = literal(DAY, literal_execute=True)  # written out: PostgreSQL compares what is selected and grouped by as text
    return hour - hour % day if "day" in query.group_by else hour


def _conditions(query: UsageQuery) -> list[ColumnElement[bool]]:
    wanted = {"tenant": query.tenant, "adapter": query.adapter}
    conditions = [usage.c[name] == value for name, value in wanted.items() if value is not None]
    if query.start is not None:
        conditions.append(usage.c.hour > query.start - HOUR)
    if query.end is not None:
        conditions.append(usage.c.hour < query.end)
    return conditions


def _behind(keys: Mapping[str, ColumnElement[Any]], after: Sequence[str | int]) -> ColumnElement[bool]:
    """What comes after these keys in the order of the rows."""
    pairs = [(name, key, value) for (name, key), value in zip(keys.items(), after, strict=True)]
    beyond = [and_(*(key == value for _, key, value in pairs[:k]), _beyond(*pair)) for k, pair in enumerate(pairs)]
    return or_(*beyond)


def _beyond(name: str, key: ColumnElement[Any], value: str | int) -> ColumnElement[bool]:
    return key < value if name in NEWEST_FIRST else key > value


def _group(row: Mapping[Any, Any]) -> UsageRow:
    sums = {name: (float if name == "seconds" else int)(row[name]) for name in AMOUNTS}
    return UsageRow(
        **{name: row.get(name) for name in ("start", "tenant", "adapter", "version", "digest")},
        amounts=Amounts(**sums),  # type: ignore[arg-type]  # ints, and seconds
    )
