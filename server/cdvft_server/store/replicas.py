"""The servers on one database: which of them live, and what they tell each other through it.

News are written in the transaction that makes them true, and writers exclude each other: the ids are in the order of
the commits, and who reads on from the last id misses nothing.
"""

import secrets
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Literal

from sqlalchemy import Connection, delete, exists, func, insert, select, update

from cdvft_server.store.database import Database
from cdvft_server.store.rows import VersionRow
from cdvft_server.store.tables import news, receipts, replicas

__all__ = ["GoneVersion", "News", "Replica", "announce"]

DEAD_SECONDS = 15  # without a sign of life
KEPT_SECONDS = 3600  # news, and the rows of the dead


@dataclass(frozen=True)
class GoneVersion:
    """What is left of a version to clear away."""

    id: int
    adapter_id: int
    digest: str


@dataclass(frozen=True)
class News:
    """`deleted`: these versions of the name are `gone`; `pinned`: its pin, or what is pinned, may be another."""

    id: int
    kind: Literal["deleted", "pinned"]
    tenant: str
    name: str
    gone: list[GoneVersion]


class Replica:
    """One server's place among them. Any thread, one call at a time; all raise StoreUnavailable."""

    def __init__(self, database: Database, base_digest: str) -> None:
        self.id = secrets.token_hex(16)
        self._database, self._base_digest = database, base_digest
        self._last: int | None = None  # of the news; None before it joined

    def beat(self) -> None:
        """A sign of life; the first one joins."""
        seen = update(replicas).where(replicas.c.id == self.id).values(seen_at=self._database.now)
        with self._database.write() as connection:
            if self._last is None:
                last = connection.scalar(select(func.coalesce(func.max(news.c.id), 0)))
            else:
                last = self._last
            if not connection.execute(seen).rowcount:
                here = {"id": self.id, "base_digest": self._base_digest, "since": last}
                connection.execute(insert(replicas).values(seen_at=self._database.now, **here))
        self._last = last

    def news(self) -> list[News]:
        """What the others did since the last call, and pins that itself has changed: where the answer to that was lost,
        they are not followed yet. Only once it has joined."""
        asked = select(news.c.id, news.c.kind, news.c.tenant, news.c.name, news.c.gone, news.c.author)
        asked = asked.where(news.c.id > self._last, news.c.base_digest == self._base_digest).order_by(news.c.id)
        with self._database.read() as connection:
            found = connection.execute(asked).all()
        if found:
            self._last = found[-1].id
        return [
            News(row.id, row.kind, row.tenant, row.name, [GoneVersion(**gone) for gone in row.gone])
            for row in found
            if row.author != self.id or row.kind == "pinned"
        ]

    def acknowledge(self, news_ids: Iterable[int]) -> None:
        """Say that it has done what these ask for."""
        with self._database.write() as connection:
            for news_id in news_ids:
                known = exists().where(receipts.c.news_id == news_id, receipts.c.replica == self.id)
                there = exists().where(news.c.id == news_id)
                if connection.scalar(select(there & ~known)):
                    connection.execute(insert(receipts).values(news_id=news_id, replica=self.id))

    def waiting_for(self, news_id: int) -> int:
        """How many others live, must hear of it, and have not yet done what it asks for."""
        answered = exists().where(receipts.c.news_id == news_id, receipts.c.replica == replicas.c.id)
        concerned = (replicas.c.base_digest == self._base_digest) & (replicas.c.since < news_id)
        alive = replicas.c.seen_at > self._database.now - DEAD_SECONDS
        others = select(func.count()).where(concerned, alive, ~answered, replicas.c.id != self.id)
        with self._database.read() as connection:
            return connection.scalar(others) or 0

    def leave(self) -> None:
        """Nobody waits for it any more."""
        with self._database.write() as connection:
            connection.execute(delete(replicas).where(replicas.c.id == self.id))


def announce(
    connection: Connection,
    database: Database,
    author: str | None,
    kind: Literal["deleted", "pinned"],
    row: VersionRow,
    *,
    gone: Iterable[VersionRow] = (),
) -> int:
    """Tell the replicas of the row's base, all but the author; the id of the news. Clears away what is long over."""
    over = database.now - KEPT_SECONDS
    connection.execute(delete(receipts).where(receipts.c.news_id.in_(select(news.c.id).where(news.c.at < over))))
    connection.execute(delete(news).where(news.c.at < over))
    connection.execute(delete(replicas).where(replicas.c.seen_at < over))
    lost = [asdict(GoneVersion(own.id, own.adapter_id, own.digest)) for own in gone]
    told = {"author": author, "kind": kind, "base_digest": row.base_digest, "tenant": row.tenant, "name": row.name}
    written = connection.execute(insert(news).values(at=database.now, gone=lost, **told))
    key = written.inserted_primary_key
    assert key is not None  # the table counts its ids up
    return int(key[0])
