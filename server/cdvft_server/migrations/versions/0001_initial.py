"""The first schema. Never changed once released: a later migration changes what this one made."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    key = sa.BigInteger().with_variant(sa.Integer, "sqlite")
    op.create_table(
        "names",
        sa.Column("tenant", sa.String(96), primary_key=True),
        sa.Column("name", sa.String(96), primary_key=True),
        sa.Column("highest", sa.Integer, nullable=False),
    )
    op.create_table(
        "adapters",
        sa.Column("id", key, primary_key=True),
        sa.Column("tenant", sa.String(96), nullable=False),
        sa.Column("name", sa.String(96), nullable=False),
        sa.Column("base_digest", sa.String(71), nullable=False),
        sa.Column("position", sa.BigInteger, nullable=False),
        sa.Column("public", sa.Boolean, nullable=False),
        sa.Column("description", sa.Text),
        sa.UniqueConstraint("tenant", "name", "base_digest", name="adapters_name"),
        sqlite_autoincrement=True,
    )
    op.create_index("adapters_position", "adapters", ["tenant", "base_digest", "position"])
    op.create_table(
        "versions",
        sa.Column("id", key, primary_key=True),
        sa.Column("adapter_id", key, sa.ForeignKey("adapters.id", name="versions_adapter"), nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("digest", sa.String(71), nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.Column("form_labels", sa.JSON),
        sa.Column("summary", sa.JSON, nullable=False),
        sa.Column("hits", sa.BigInteger, nullable=False),
        sa.Column("last_used", sa.BigInteger),
        sa.UniqueConstraint("adapter_id", "version", name="versions_version"),
        sa.UniqueConstraint("adapter_id", "digest", name="versions_digest"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "aliases",
        sa.Column("adapter_id", key, primary_key=True, autoincrement=False),
        sa.Column("alias", sa.String(96), primary_key=True),
        sa.Column("version", sa.Integer, nullable=False),
        sa.ForeignKeyConstraint(
            ["adapter_id", "version"], ["versions.adapter_id", "versions.version"], name="aliases_version"
        ),
    )
    op.create_index("aliases_of_version", "aliases", ["adapter_id", "version"])
    op.create_table(
        "blobs",
        sa.Column("tenant", sa.String(96), primary_key=True),
        sa.Column("sha256", sa.String(64), primary_key=True),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("data", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "version_files",
        sa.Column("version_id", key, primary_key=True, autoincrement=False),
        sa.Column("file", sa.String(8), primary_key=True),
        sa.Column("tenant", sa.String(96), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.ForeignKeyConstraint(["version_id"], ["versions.id"], name="files_version"),
        sa.ForeignKeyConstraint(["tenant", "sha256"], ["blobs.tenant", "blobs.sha256"], name="files_blob"),
        sa.CheckConstraint("file IN ('config', 'weights', 'template')", name="files_file"),
    )
    op.create_index("files_of_blob", "version_files", ["tenant", "sha256"])
    op.create_table(
        "steps",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("done_at", sa.BigInteger, nullable=False),
    )
