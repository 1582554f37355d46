"""Which adapters are to stay on the device."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("adapters", sa.Column("pinned", sa.Boolean, nullable=False, server_default=sa.false()))
