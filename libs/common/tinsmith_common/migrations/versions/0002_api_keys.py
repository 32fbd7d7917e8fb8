"""API keys. A run says by itself what it is a copy of. Sizes may be over 2 GiB on Postgres too."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Apply it."""
    op.create_table(
        "api_keys",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("note", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("last_used_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("digest"),
    )
    op.create_index("ix_api_keys_owner", "api_keys", ["owner"])

    op.add_column("training_runs", sa.Column("copied_from", sa.String(), nullable=True))
    op.execute(
        "UPDATE training_runs SET copied_from ="
        " (SELECT source_path FROM copies WHERE copies.id = training_runs.id)"
    )
    op.drop_table("copies")

    with op.batch_alter_table("checkpoints") as checkpoints:
        checkpoints.alter_column(
            "size_bytes", existing_type=sa.Integer(), type_=sa.BigInteger(), existing_nullable=False
        )
    with op.batch_alter_table("completions") as completions:
        completions.alter_column(
            "payload_bytes", existing_type=sa.Integer(), type_=sa.BigInteger(), existing_nullable=True
        )
