"""The candidates of a study that wait for a worker, as rows that any process may claim.

A worker has a row for the time of a lease, which it renews while it evaluates. A row whose worker
is gone is given back; after `ATTEMPTS` workers it has failed. Each claim raises the row's attempt,
and a result is taken from the latest attempt only: evaluations may be repeated, results are there
once. SQLite gives the number of a deleted row to the next one, so that whoever saw a row before
names its study and candidate with the number.
"""

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nas.errors import ConfigError
from nas.files import digest_json, to_plain
from nas.study.holder import Holder
from nas.study.lease import LEASE_S
from nas.study.place import Place
from nas.study.trial import Choice

if TYPE_CHECKING:
    from sqlalchemy import Connection

ATTEMPTS = 3
QUEUED, RUNNING, DONE = "queued", "running", "done"
_SAME = "queue_id = :id AND study_id = :study AND candidate = :candidate"
_LOOKED_AT = 16  # rows a worker tries to claim before it looks again


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A candidate that one worker evaluates; `attempt` is what its result must carry."""

    id: int
    candidate: str
    attempt: int
    payload: Mapping[str, Any]  # Any: plain JSON


def candidate_key(choice: Choice) -> str:
    """Return what a candidate is called in the queue: the sha256 (hex) of its choice."""
    return digest_json(dict(choice))


class Queue:
    """The queue of one study, for its owner (`put`, `results`, `reap`) and for its workers."""

    def __init__(self, place: Place | None, *, lease_s: float = LEASE_S) -> None:
        """Find a study's queue.

        Raises:
            ConfigError: the study is in memory, where no other process sees it.
        """
        if place is None:
            raise ConfigError(
                "workers need a study in a database, but this one is in memory. Use "
                "Study.resume(NAME, storage=URL)."
            )
        self._place = place
        self._lease_s = lease_s
        self._worker = uuid.uuid4().hex

    @property
    def beat_s(self) -> float:
        """How often a worker renews what it has claimed."""
        return self._lease_s / 3

    # ------------------------------------------------------------ the owner's side
    def put(self, choice: Choice, payload: Mapping[str, Any]) -> str:
        """Add a candidate unless it is there, and return its key; a result it has is kept."""
        from sqlalchemy import text

        key = candidate_key(choice)
        names = {
            "study": self._place.study_id, "candidate": key,
            "payload": json.dumps({"choice": to_plain(dict(choice)), **payload}),
        }  # fmt: skip

        def add(connection: "Connection") -> None:
            there = "SELECT 1 FROM nas_queue WHERE study_id = :study AND candidate = :candidate"
            if connection.execute(text(there), names).one_or_none() is None:
                connection.execute(
                    text(
                        "INSERT INTO nas_queue "
                        "(study_id, candidate, payload, state, attempt, lost) "
                        f"VALUES (:study, :candidate, :payload, '{QUEUED}', 0, 0)"
                    ),
                    names,
                )

        self._place.transact(add)
        return key

    def results(self) -> dict[str, dict[str, Any]]:
        """Return {key: result} of the candidates that are done and not recorded yet."""
        from sqlalchemy import text

        sql = text(
            "SELECT candidate, result FROM nas_queue "
            f"WHERE study_id = :study AND state = '{DONE}' ORDER BY queue_id"
        )
        names = {"study": self._place.study_id}
        rows = self._place.transact(lambda connection: connection.execute(sql, names).all())
        return {key: json.loads(result) for key, result in rows}

    def reap(self) -> list[str]:
        """Give back the candidates of workers that are gone; return what became of each.

        One that was given back too often is done, with the reason why it has no accuracy.
        """
        from sqlalchemy import text

        sql = text(
            "SELECT queue_id, candidate, attempt, lost, host, machine, pid, "
            f"expires_at - {self._place.now} AS left_s "
            f"FROM nas_queue WHERE study_id = :study AND state = '{RUNNING}'"
        )
        names = {"study": self._place.study_id}
        told = []
        for row in self._place.transact(lambda connection: connection.execute(sql, names).all()):
            holder = Holder(host=row.host, machine=row.machine, pid=row.pid)
            if not holder.is_gone and row.left_s > 0:
                continue
            lost = row.lost + 1
            if lost < ATTEMPTS:
                why = "has ended" if holder.is_gone else "does not answer"
                state, result, words = QUEUED, None, f"{holder} {why}: its candidate is given back"
            else:
                words = (
                    f"{lost} workers ended or stopped answering while they evaluated it, the last "
                    f"one {holder}: killed, or out of memory?"
                )
                state, result = DONE, json.dumps({"reason": words})
            if self._change(
                "attempt = :attempt",
                {"id": row.queue_id, "candidate": row.candidate, "attempt": row.attempt},
                {"state": state, "result": result, "lost": lost},
            ):
                told.append(words)
        return told

    # ------------------------------------------------------------ a worker's side
    def claim(self) -> Claim | None:
        """Take the oldest candidate that waits, if there is one; nobody else gets it."""
        from sqlalchemy import text

        here = Holder.here()
        names: dict[str, Any] = {
            "study": self._place.study_id, "worker": self._worker, "lease_s": self._lease_s,
            "host": here.host, "machine": here.machine, "pid": here.pid, "most": _LOOKED_AT,
        }  # fmt: skip
        # A row that is ours already is one whose claim went through although its answer was lost.
        look = text(
            "SELECT queue_id, candidate, attempt, payload, state FROM nas_queue "
            f"WHERE study_id = :study AND (state = '{QUEUED}' "
            f"OR (state = '{RUNNING}' AND worker = :worker)) "
            "ORDER BY queue_id LIMIT :most"
        )
        take = text(
            f"UPDATE nas_queue SET state = '{RUNNING}', attempt = attempt + 1, worker = :worker, "
            "host = :host, machine = :machine, pid = :pid, "
            f"expires_at = {self._place.now} + :lease_s "
            f"WHERE {_SAME} AND attempt = :attempt AND state = :state"
        )
        waiting = self._place.transact(lambda connection: connection.execute(look, names).all())
        for row in waiting:
            mine = names | {"id": row.queue_id, "candidate": row.candidate}
            mine |= {"attempt": row.attempt, "state": row.state}
            taken = self._place.transact(
                lambda connection, mine=mine: connection.execute(take, mine).rowcount  # type: ignore[misc]
            )
            if taken == 1:
                return Claim(
                    id=row.queue_id, candidate=row.candidate, attempt=row.attempt + 1,
                    payload=json.loads(row.payload),
                )  # fmt: skip
        return None

    def beat(self, claim: Claim) -> bool:
        """Keep a claim for another lease; False if somebody else has it now."""
        from sqlalchemy import text

        sql = text(
            f"UPDATE nas_queue SET expires_at = {self._place.now} + :lease_s WHERE {_SAME} "
            f"AND attempt = :attempt AND worker = :worker AND state = '{RUNNING}'"
        )
        names: dict[str, Any] = {"lease_s": self._lease_s, "worker": self._worker}
        names |= {"id": claim.id, "study": self._place.study_id, "candidate": claim.candidate}
        names |= {"attempt": claim.attempt}
        return self._place.transact(lambda connection: connection.execute(sql, names).rowcount) == 1

    def finish(self, claim: Claim, result: Mapping[str, Any]) -> bool:
        """Write a candidate's result; False, and nothing is written, if the claim is over."""
        return self._end(claim, DONE, json.dumps(to_plain(dict(result))))

    def give_back(self, claim: Claim) -> bool:
        """Let somebody else evaluate the candidate; this worker does not count as lost."""
        return self._end(claim, QUEUED, None)

    def _end(self, claim: Claim, state: str, result: str | None) -> bool:
        return self._change(
            "attempt = :attempt AND worker = :worker",
            {
                "id": claim.id,
                "candidate": claim.candidate,
                "attempt": claim.attempt,
                "worker": self._worker,
            },
            {"state": state, "result": result},
        )

    # ------------------------------------------------------------ both
    def _change(self, condition: str, row: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
        """End the running of a row, if it is still running as the condition says."""
        from sqlalchemy import text

        columns = ", ".join(f"{name} = :{name}" for name in after)
        sql = text(
            f"UPDATE nas_queue SET {columns}, worker = NULL, expires_at = NULL "
            f"WHERE {_SAME} AND state = '{RUNNING}' AND {condition}"
        )
        names = {**after, **row, "study": self._place.study_id}
        return self._place.transact(lambda connection: connection.execute(sql, names).rowcount) == 1
