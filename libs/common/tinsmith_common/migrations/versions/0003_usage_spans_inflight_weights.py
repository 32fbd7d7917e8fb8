"""Usage by hour, spans of requests, inflight weights, why a session failed."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Apply it."""
    op.create_table(
        "inflight_weights",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("weights_key", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "spans",
        sa.Column("request_id", sa.String(), nullable=False),
        sa.Column("session_id", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("error", sa.String(), nullable=True),
        sa.Column("category", sa.String(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("computed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("quantities", sa.JSON(none_as_null=True), nullable=True),
        sa.PrimaryKeyConstraint("request_id"),
    )
    with op.batch_alter_table("spans") as table:
        table.create_index("ix_spans_finished_at", ["finished_at"], unique=False)
        table.create_index("ix_spans_session_id", ["session_id"], unique=False)

    op.create_table(
        "stored_checkpoints",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("path", sa.String(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("session_id", sa.String(), nullable=False),
        sa.Column("base_model", sa.String(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    with op.batch_alter_table("stored_checkpoints") as table:
        table.create_index("ix_stored_checkpoints_owner", ["owner"], unique=False)
        table.create_index("ix_stored_checkpoints_path", ["path"], unique=False)

    op.create_table(
        "usage_hours",
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("hour", sa.DateTime(timezone=True), nullable=False),
        sa.Column("session_id", sa.String(), nullable=False),
        sa.Column("base_model", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("quantity", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("owner", "hour", "session_id", "base_model", "kind"),
    )
    session_of_a_promise = (
        "split_part(request_id, ':', 1)"
        if op.get_bind().dialect.name == "postgresql"
        else "substr(request_id, 1, instr(request_id || ':', ':') - 1)"
    )
    with op.batch_alter_table("promises") as table:
        table.add_column(sa.Column("session_id", sa.String(), nullable=False, server_default=""))
        table.add_column(sa.Column("started_at", sa.DateTime(timezone=True), nullable=True))
        table.add_column(sa.Column("computed_at", sa.DateTime(timezone=True), nullable=True))
        table.add_column(sa.Column("quantities", sa.JSON(none_as_null=True), nullable=True))
        table.create_index("ix_promises_session_id", ["session_id"], unique=False)

    op.execute(f"UPDATE promises SET session_id = {session_of_a_promise}")
    with op.batch_alter_table("promises") as table:
        table.alter_column("session_id", existing_type=sa.String(), server_default=None)
    op.execute(
        "INSERT INTO stored_checkpoints (id, path, owner, session_id, base_model, size_bytes, started_at)"
        " SELECT checkpoints.key, checkpoints.path, checkpoints.owner, training_runs.session_id,"
        " checkpoints.base_model, checkpoints.size_bytes, checkpoints.created_at"
        " FROM checkpoints JOIN training_runs ON training_runs.id = checkpoints.run_id"
    )

    with op.batch_alter_table("sampling_sessions") as table:
        table.add_column(sa.Column("inflight_run", sa.String(), nullable=True))

    with op.batch_alter_table("sessions") as table:
        table.add_column(sa.Column("failure", sa.JSON(none_as_null=True), nullable=True))
