"""The store's tables, as the newest migration leaves them.

An adapter is a tenant's name on one base. Version numbers are counted per tenant and name, over all bases and for ever;
versions, aliases, visibility and description belong to one base's adapter.
"""

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Double,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    false,
)

__all__ = [
    "adapters",
    "aliases",
    "blobs",
    "metadata",
    "names",
    "news",
    "receipts",
    "replicas",
    "steps",
    "usage",
    "usage_writers",
    "version_files",
    "versions",
]

metadata = MetaData()
Key = BigInteger().with_variant(Integer, "sqlite")  # SQLite counts only an INTEGER primary key up
Name = String(96)
Digest = String(71)  # "sha256:" and 64 hex digits
Json = JSON(none_as_null=True)

names = Table(
    "names",
    metadata,
    Column("tenant", Name, primary_key=True),
    Column("name", Name, primary_key=True),
    Column("highest", Integer, nullable=False, doc="highest version ever given; the row outlives the adapters"),
)

adapters = Table(
    "adapters",
    metadata,
    Column("id", Key, primary_key=True),
    Column("tenant", Name, nullable=False),
    Column("name", Name, nullable=False),
    Column("base_digest", Digest, nullable=False),
    Column("position", BigInteger, nullable=False, doc="id of its first version: the order of lists"),
    Column("public", Boolean, nullable=False),
    Column("description", Text),
    Column("pinned", Boolean, nullable=False, server_default=false(), doc="what `latest` names stays on the device"),
    UniqueConstraint("tenant", "name", "base_digest", name="adapters_name"),
    Index("adapters_position", "tenant", "base_digest", "position"),
    sqlite_autoincrement=True,
)
"""A row without versions is a deleted adapter; it stays as a place in lists that are being paged through."""

versions = Table(
    "versions",
    metadata,
    Column("id", Key, primary_key=True),
    Column("adapter_id", Key, ForeignKey("adapters.id", name="versions_adapter"), nullable=False),
    Column("version", Integer, nullable=False),
    Column("digest", Digest, nullable=False),
    Column("created_at", BigInteger, nullable=False, doc="unix seconds"),
    Column("bytes", BigInteger, nullable=False, doc="of its files"),
    Column("form_labels", Json),
    Column("summary", Json, nullable=False),
    Column("hits", BigInteger, nullable=False),
    Column("last_used", BigInteger, doc="unix seconds"),
    UniqueConstraint("adapter_id", "version", name="versions_version"),
    UniqueConstraint("adapter_id", "digest", name="versions_digest"),
    sqlite_autoincrement=True,
)

aliases = Table(
    "aliases",
    metadata,
    Column("adapter_id", Key, primary_key=True, autoincrement=False),
    Column("alias", Name, primary_key=True),
    Column("version", Integer, nullable=False),
    ForeignKeyConstraint(
        ["adapter_id", "version"], ["versions.adapter_id", "versions.version"], name="aliases_version"
    ),
    Index("aliases_of_version", "adapter_id", "version"),
)
"""`latest` is one of them: every adapter that has a version has it."""

blobs = Table(
    "blobs",
    metadata,
    Column("tenant", Name, primary_key=True, doc="never shared by tenants: who stores what must not show"),
    Column("sha256", String(64), primary_key=True),
    Column("size", BigInteger, nullable=False),
    Column("data", LargeBinary, nullable=False),
)

version_files = Table(
    "version_files",
    metadata,
    Column("version_id", Key, primary_key=True, autoincrement=False),
    Column("file", String(8), primary_key=True),
    Column("tenant", Name, nullable=False),
    Column("sha256", String(64), nullable=False),
    ForeignKeyConstraint(["version_id"], ["versions.id"], name="files_version"),
    ForeignKeyConstraint(["tenant", "sha256"], ["blobs.tenant", "blobs.sha256"], name="files_blob"),
    CheckConstraint("file IN ('config', 'weights', 'template', 'frozen')", name="files_file"),
    Index("files_of_blob", "tenant", "sha256"),
)

steps = Table(
    "steps",
    metadata,
    Column("name", Text, primary_key=True),
    Column("done_at", BigInteger, nullable=False, doc="unix seconds"),
)
"""What is done once in a database's life, such as adding the demo adapters."""

usage = Table(
    "usage",
    metadata,
    Column("tenant", Name, primary_key=True, doc="who asked"),
    Column("hour", BigInteger, primary_key=True, autoincrement=False, doc="unix seconds of its start"),
    Column("adapter", String(193), primary_key=True, doc="its name, OWNER/NAME for another tenant's; or the base's"),
    Column("version", Integer, primary_key=True, autoincrement=False, doc="0 for the base"),
    Column("digest", Digest, primary_key=True, doc="the base digest for the base"),
    Column("base_digest", Digest, nullable=False),
    Column("requests", BigInteger, nullable=False),
    Column("failed", BigInteger, nullable=False),
    Column("cancelled", BigInteger, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
    Column("seconds", Double, nullable=False, doc="of the engine"),
)
"""Names only, no reference: what was deleted stays here under its name."""

usage_writers = Table(
    "usage_writers",
    metadata,
    Column("writer", String(32), primary_key=True, doc="one run of one server"),
    Column("batch", BigInteger, nullable=False, doc="the last that it wrote: none is added twice"),
    Column("written_at", BigInteger, nullable=False, doc="unix seconds"),
)

replicas = Table(
    "replicas",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("base_digest", Digest, nullable=False),
    Column("since", BigInteger, nullable=False, doc="the last of the news when it joined: it hears of those after it"),
    Column("seen_at", BigInteger, nullable=False, doc="unix seconds by the database's clock"),
)
"""The servers on this database; one that was not seen for a while is dead."""

news = Table(
    "news",
    metadata,
    Column("id", Key, primary_key=True),
    Column("author", String(32), doc="the replica that knows already"),
    Column("base_digest", Digest, nullable=False),
    Column("kind", String(16), nullable=False),
    Column("tenant", Name, nullable=False),
    Column("name", Name, nullable=False),
    Column("gone", Json, nullable=False, doc="the versions that were deleted"),
    Column("at", BigInteger, nullable=False, doc="unix seconds by the database's clock"),
    sqlite_autoincrement=True,
)

receipts = Table(
    "receipts",
    metadata,
    Column("news_id", Key, ForeignKey("news.id", name="receipts_news"), primary_key=True, autoincrement=False),
    Column("replica", String(32), primary_key=True),
)
"""Which replica has done what a piece of news asks for."""
