"""Tenants with their limits, their keys, and whether a key is needed. What was stored before belongs to `default`."""

import time

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    key = sa.BigInteger().with_variant(sa.Integer, "sqlite")
    tenants = op.create_table(
        "tenants",
        sa.Column("id", key, primary_key=True),
        sa.Column("name", sa.String(96), nullable=False),
        sa.Column("max_adapters", sa.BigInteger),
        sa.Column("max_bytes", sa.BigInteger),
        sa.Column("requests_per_minute", sa.BigInteger),
        sa.Column("tokens_per_minute", sa.BigInteger),
        sa.Column("max_concurrent", sa.BigInteger),
        sa.Column("weight", sa.Float, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.UniqueConstraint("name", name="tenants_name"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "keys",
        sa.Column("number", key, primary_key=True),
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("tenant", sa.String(96), sa.ForeignKey("tenants.name", name="keys_tenant"), nullable=False),
        sa.Column("lookup", sa.String(16), nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
        sa.Column("prefix", sa.String(16), nullable=False),
        sa.Column("scopes", sa.String(64), nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger),
        sa.Column("revoked_at", sa.BigInteger),
        sa.UniqueConstraint("id", name="keys_id"),
        sqlite_autoincrement=True,
    )
    op.create_index("keys_lookup", "keys", ["lookup"])
    op.create_index("keys_of_tenant", "keys", ["tenant", "number"])
    settings = op.create_table(
        "settings",
        sa.Column("name", sa.String(96), primary_key=True),
        sa.Column("value", sa.Text, nullable=False),
    )
    op.create_index("blobs_sizes", "blobs", ["tenant", "size"])
    now, owners = int(time.time()), sa.table("adapters", sa.column("tenant"))
    found = {"default", *op.get_bind().scalars(sa.select(owners.c.tenant).distinct())}
    op.bulk_insert(tenants, [{"name": name, "weight": 1.0, "created_at": now} for name in sorted(found)])
    op.bulk_insert(settings, [{"name": "authentication_required", "value": "false"}])
