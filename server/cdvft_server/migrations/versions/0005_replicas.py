"""Which servers use the database, and what they must hear of: deletes, and pins that moved."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0003"


def upgrade() -> None:
    key = sa.BigInteger().with_variant(sa.Integer, "sqlite")
    op.create_table(
        "replicas",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("base_digest", sa.String(71), nullable=False),
        sa.Column("since", sa.BigInteger, nullable=False),
        sa.Column("seen_at", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "news",
        sa.Column("id", key, primary_key=True),
        sa.Column("author", sa.String(32)),
        sa.Column("base_digest", sa.String(71), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("tenant", sa.String(96), nullable=False),
        sa.Column("name", sa.String(96), nullable=False),
        sa.Column("gone", sa.JSON, nullable=False),
        sa.Column("at", sa.BigInteger, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "receipts",
        sa.Column(
            "news_id", key, sa.ForeignKey("news.id", name="receipts_news"), primary_key=True, autoincrement=False
        ),
        sa.Column("replica", sa.String(32), primary_key=True),
    )
    if op.get_bind().dialect.name == "postgresql":  # weights don't compress: don't try
        op.execute("ALTER TABLE blobs ALTER COLUMN data SET STORAGE EXTERNAL")
