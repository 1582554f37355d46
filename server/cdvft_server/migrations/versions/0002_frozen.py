"""A fourth kind of file: what a method draws by a seed, kept as it was drawn."""

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    with op.batch_alter_table("version_files") as table:
        table.drop_constraint("files_file", type_="check")
        table.create_check_constraint("files_file", "file IN ('config', 'weights', 'template', 'frozen')")
