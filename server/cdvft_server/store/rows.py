"""Reading versions: one statement each, so that a row and its aliases are of one moment."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Text, cast, false, or_, select

from cdvft_server.naming import MAX_VERSION, Alias, DigestPrefix, Latest, Selector, Version, is_name
from cdvft_server.store.tables import adapters, aliases, versions

__all__ = ["LATEST", "VersionRow", "fetch", "numbered", "of_adapter", "pointed_at", "selected", "visible"]

LATEST = "latest"
POINTER = aliases.alias("pointer")
JSON = ("summary", "form_labels")
STATEMENT = (
    select(
        *(column for column in versions.c if column.name not in JSON),
        *(cast(versions.c[name], Text).label(name) for name in JSON),  # read below: it may be no JSON any more
        adapters.c.tenant,
        adapters.c.name,
        adapters.c.base_digest,
        adapters.c.public,
        adapters.c.description,
        adapters.c.pinned,
        aliases.c.alias,
        aliases.c.version.label("target"),
    )
    .select_from(
        adapters.join(versions, versions.c.adapter_id == adapters.c.id).join(
            aliases, aliases.c.adapter_id == adapters.c.id
        )
    )
    .order_by(adapters.c.position.desc(), versions.c.version.desc(), aliases.c.alias)
)


@dataclass(frozen=True)
class VersionRow:
    """`id` is never used again, not even after a delete. `aliases` are the adapter's, `latest` among them.

    The types are those that were written. In a damaged database a column may hold anything.
    """

    id: int
    adapter_id: int
    tenant: str
    name: str
    version: int
    digest: str
    base_digest: str
    public: bool
    description: str | None
    pinned: bool  # the adapter: what its `latest` names stays on the device
    created_at: int  # unix seconds
    bytes: int  # of its files
    summary: dict[str, Any]
    form_labels: list[str] | None
    aliases: dict[str, int]
    hits: int
    last_used: int | None  # unix seconds

    @property
    def is_latest(self) -> bool:
        return self.aliases.get(LATEST) == self.version


def fetch(connection: Connection, *conditions: ColumnElement[bool]) -> list[VersionRow]:
    """The versions that meet all conditions (on adapters and versions): newest adapter first, then newest version."""
    found: dict[int, VersionRow] = {}
    for row in connection.execute(STATEMENT.where(*conditions)).mappings():
        if row["id"] not in found:
            found[row["id"]] = _version(row)
        found[row["id"]].aliases[row["alias"]] = row["target"]
    return list(found.values())


def _version(row: Mapping[Any, Any]) -> VersionRow:
    fields = {name: row[name] for name in VersionRow.__dataclass_fields__ if name != "aliases"}
    return VersionRow(**{**fields, **{name: _parsed(row[name]) for name in JSON}}, aliases={})


def _parsed(text: str | None) -> Any:
    """The text itself where it is no JSON."""
    try:
        return None if text is None else json.loads(text)
    except (ValueError, RecursionError):
        return text


def of_adapter(tenant: str, name: str, base_digest: str) -> Sequence[ColumnElement[bool]]:
    """No row for a name that no adapter can have: PostgreSQL refuses text with NUL or half a surrogate pair."""
    if not is_name(name) or not is_name(tenant):
        return (false(),)
    return adapters.c.tenant == tenant, adapters.c.name == name, adapters.c.base_digest == base_digest


def visible(caller: str) -> ColumnElement[bool]:
    return or_(adapters.c.tenant == caller, adapters.c.public)


def selected(selector: Selector) -> ColumnElement[bool]:
    match selector:
        case Latest():
            return pointed_at(LATEST)
        case Alias(alias):
            return pointed_at(alias)
        case Version(version):
            return numbered(version)
        case DigestPrefix(prefix):
            return versions.c.digest.startswith(prefix, autoescape=True)


def pointed_at(alias: str) -> ColumnElement[bool]:
    target = select(POINTER.c.version).where(POINTER.c.adapter_id == adapters.c.id, POINTER.c.alias == alias)
    return versions.c.version == target.correlate(adapters).scalar_subquery()


def numbered(version: int) -> ColumnElement[bool]:
    """No row for a number that no version can have, however large."""
    return versions.c.version == (version if 1 <= version <= MAX_VERSION else 0)
