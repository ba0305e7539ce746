"""Who owns a study, and the candidates its workers are to evaluate."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

# SQLite does not enforce references.
FORGET_TRIGGER = """
CREATE TRIGGER nas_forget_{table} AFTER DELETE ON studies
BEGIN
    DELETE FROM nas_{table} WHERE study_id = OLD.study_id;
END
"""


def upgrade() -> None:
    """Make both tables; versions without migrations then refuse the database."""
    op.create_table(
        "nas_leases",
        sa.Column("study_id", *_study(), primary_key=True, autoincrement=False),
        sa.Column("owner", sa.String(32), nullable=False),
        *_holder(),
    )
    op.create_table(
        "nas_queue",
        sa.Column("queue_id", sa.Integer, primary_key=True),
        sa.Column("study_id", *_study(), nullable=False),
        sa.Column("candidate", sa.String(64), nullable=False),
        sa.Column("payload", sa.Text, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("lost", sa.Integer, nullable=False),
        sa.Column("worker", sa.String(32)),
        *_holder(),
        sa.Column("result", sa.Text),
        sa.UniqueConstraint("study_id", "candidate"),
    )
    if op.get_bind().dialect.name == "sqlite":
        op.execute(FORGET_TRIGGER.format(table="leases"))
        op.execute(FORGET_TRIGGER.format(table="queue"))
    op.execute("DELETE FROM nas_schema")
    op.execute("INSERT INTO nas_schema VALUES (2)")


def _study() -> "tuple[type[sa.Integer], sa.ForeignKey]":
    return sa.Integer, sa.ForeignKey("studies.study_id", ondelete="CASCADE")


def _holder() -> "tuple[sa.Column[str], sa.Column[str], sa.Column[int], sa.Column[float]]":
    """Return the columns that say which process has a row, and until when (s since 1970)."""
    return (
        sa.Column("host", sa.String(255)),
        sa.Column("machine", sa.String(128)),
        sa.Column("pid", sa.Integer),
        sa.Column("expires_at", sa.Double),
    )
