"""Two read-only views and a table of measurements beside Optuna's tables.

Plain SQL for SQLite and PostgreSQL; Optuna's own tables stay as they are. Numbers are read through
a cast because Optuna keeps attributes as JSON text. Databases made before there were migrations
have some or all of this: only what is missing is made.
"""

from alembic import op
from sqlalchemy import inspect

revision = "0001"
down_revision = None


def _number(alias: str) -> str:
    return f"CAST({alias}.value_json AS DOUBLE PRECISION)"


def _whole(alias: str) -> str:
    return f"CAST(CAST({alias}.value_json AS DOUBLE PRECISION) AS BIGINT)"


def _attribute(alias: str, key: str) -> str:
    return (
        f"LEFT JOIN trial_user_attributes {alias} "
        f"ON {alias}.trial_id = t.trial_id AND {alias}.key = '{key}'"
    )


# A study of ours is one that carries nas.schema; the database may hold others.
_TRIALS_OF_OURS = """
FROM trials t
JOIN studies s ON s.study_id = t.study_id
JOIN study_user_attributes n ON n.study_id = t.study_id AND n.key = 'nas.schema'
"""

TRIALS_VIEW = f"""
CREATE VIEW nas_trials AS
SELECT s.study_name AS study, t.number AS trial, CAST(t.state AS VARCHAR(16)) AS state,
       v.value AS accuracy, {_number("l")} AS loss,
       {_whole("p")} AS params, {_whole("m")} AS macs, {_whole("b")} AS bytes,
       a.value_json AS architecture, t.datetime_complete AS created_at, t.trial_id AS trial_id
{_TRIALS_OF_OURS}
LEFT JOIN trial_values v ON v.trial_id = t.trial_id AND v.objective = 0
{_attribute("l", "loss")}
{_attribute("p", "params")}
{_attribute("m", "macs")}
{_attribute("b", "bytes")}
{_attribute("a", "architecture")}
"""

_TARGET = "CASE WHEN SUBSTR(c.key, 1, 11) = 'latency_ms:' THEN SUBSTR(c.key, 12) ELSE '' END"
_METRIC = "CASE WHEN SUBSTR(c.key, 1, 11) = 'latency_ms:' THEN 'latency_ms' ELSE c.key END"

COSTS_VIEW = f"""
CREATE VIEW nas_costs AS
SELECT t.trial_id AS trial_id, {_TARGET} AS target, {_METRIC} AS metric,
       {_number("c")} AS predicted, x.measured AS measured, x.ci_high AS ci_high
{_TRIALS_OF_OURS}
JOIN trial_user_attributes c ON c.trial_id = t.trial_id
     AND (c.key IN ('latency_ms', 'params', 'macs', 'bytes')
          OR SUBSTR(c.key, 1, 11) = 'latency_ms:')
LEFT JOIN nas_measurements x ON x.trial_id = t.trial_id
     AND x.target = {_TARGET} AND x.metric = {_METRIC}
"""

MEASUREMENTS = """
CREATE TABLE nas_measurements (
    trial_id INTEGER NOT NULL REFERENCES trials (trial_id) ON DELETE CASCADE,
    target VARCHAR(200) NOT NULL,
    metric VARCHAR(64) NOT NULL,
    measured DOUBLE PRECISION NOT NULL,
    ci_high DOUBLE PRECISION,
    PRIMARY KEY (trial_id, target, metric)
)
"""

# What versions without migrations look at to see that a database is too new for them.
SCHEMA_TABLE = "CREATE TABLE nas_schema (version INTEGER NOT NULL PRIMARY KEY)"

# SQLite numbers trials again after a study was deleted, and does not enforce references.
FORGET_TRIGGER = """
CREATE TRIGGER nas_forget_measurements AFTER DELETE ON trials
BEGIN
    DELETE FROM nas_measurements WHERE trial_id = OLD.trial_id;
END
"""

# In the order they depend on each other.
OBJECTS = {
    "nas_measurements": MEASUREMENTS,
    "nas_trials": TRIALS_VIEW,
    "nas_costs": COSTS_VIEW,
    "nas_schema": SCHEMA_TABLE,
}


def upgrade() -> None:
    """Make what is missing."""
    connection = op.get_bind()
    inspector = inspect(connection)
    there = {*inspector.get_table_names(), *inspector.get_view_names()}
    for name, sql in OBJECTS.items():
        if name not in there:
            op.execute(sql)
            if name == "nas_measurements" and connection.dialect.name == "sqlite":
                op.execute(FORGET_TRIGGER)
