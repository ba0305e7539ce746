"""The one owner of a study: a row that expires unless it is renewed.

Who owns a study proposes its candidates and records their results. Expiry is by the database's
clock; an owner that was killed on this machine is known to be gone at once. What an owner writes
and that it is still the owner is one transaction, so that one which lost its lease (it was stopped
for long, or the clock jumped) records nothing more.
"""

import logging
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from nas.errors import NasError, TryAgain
from nas.study.holder import Holder
from nas.study.patience import mask_url
from nas.study.place import Place

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from nas.study.study import Study

logger = logging.getLogger(__name__)

LEASE_S = 30.0
RENEWALS = 3  # in the time of a lease
RELEASE_PATIENCE_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """Who owns a study, and for how long (s) unless it renews its lease."""

    id: str
    holder: Holder
    expires_at: float
    left_s: float

    @property
    def is_gone(self) -> bool:
        """Return whether its lease is over or its process ended."""
        return self.left_s <= 0 or self.holder.is_gone


def owner_of(place: Place) -> Owner | None:
    """Return who owns a study, one that is gone included; None if nobody does.

    Raises:
        TryAgain: the database stays locked or away.
    """
    return place.transact(lambda connection: _read(connection, place))


def _read(connection: "Connection", place: Place) -> Owner | None:
    from sqlalchemy import text

    row = connection.execute(
        text(
            f"SELECT owner, host, machine, pid, expires_at, expires_at - {place.now} "
            "FROM nas_leases WHERE study_id = :study"
        ),
        {"study": place.study_id},
    ).one_or_none()
    if row is None:
        return None
    holder = Holder(host=row[1], machine=row[2], pid=row[3])
    return Owner(id=row[0], holder=holder, expires_at=row[4], left_s=float(row[5]))


class Lease:
    """One owner's lease on a study, renewed by a thread of its own from `take` to `release`."""

    def __init__(self, place: Place, *, lease_s: float = LEASE_S) -> None:
        self._place = place
        self._lease_s = lease_s
        self._id = uuid.uuid4().hex
        self._stop = threading.Event()
        self._lost = threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True, name="nas-lease")

    @property
    def is_lost(self) -> bool:
        """Return whether somebody else has taken the study over."""
        return self._lost.is_set()

    # ------------------------------------------------------------ taking and giving
    def take(self) -> None:
        """Become the owner; a lease that is over, or whose process is gone, is taken over.

        Raises:
            TryAgain: another process owns the study; the message says which, and until when.
        """
        self._place.transact(self._take)
        self._thread.start()

    def release(self) -> None:
        """Give the study up; a database that is away does not keep us: the lease expires."""
        from sqlalchemy import text

        self._stop.set()
        self._thread.join()
        sql = text("DELETE FROM nas_leases WHERE study_id = :study AND owner = :owner")
        try:
            self._place.transact(
                lambda connection: connection.execute(sql, self._names),
                patience_s=RELEASE_PATIENCE_S,
            )
        except NasError as error:
            logger.debug("the lease on %s was not given back: %s", self._place.name, error)

    def _take(self, connection: "Connection") -> None:
        from sqlalchemy import text

        names = self._names | {"lease_s": self._lease_s}
        until = f"{self._place.now} + :lease_s"
        found = _read(connection, self._place)
        if found is None:
            connection.execute(
                text(
                    "INSERT INTO nas_leases (study_id, owner, host, machine, pid, expires_at) "
                    f"VALUES (:study, :owner, :host, :machine, :pid, {until})"
                ),
                names,
            )
            return
        if found.id == self._id:  # our commit went through, its answer did not
            return
        if not found.is_gone:
            raise self._held(found)
        logger.warning("%s is taken over from %s", self._place.name, found.holder)
        taken = connection.execute(
            text(
                "UPDATE nas_leases SET owner = :owner, host = :host, machine = :machine, "
                f"pid = :pid, expires_at = {until} "
                "WHERE study_id = :study AND owner = :before AND expires_at = :expired_at"
            ),
            names | {"before": found.id, "expired_at": found.expires_at},
        )
        if taken.rowcount != 1:
            raise TryAgain(
                f"another process has just taken the study {self._place.name!r} over. Wait for "
                "it to end, or choose another --name."
            )

    def _held(self, owner: Owner) -> TryAgain:
        until = datetime.fromtimestamp(owner.expires_at, UTC).isoformat(timespec="seconds")
        return TryAgain(
            f"the study {self._place.name!r} in {mask_url(self._place.url)} is being searched by "
            f"{owner.holder}, whose lease lasts until {until} ({max(owner.left_s, 0):.0f} s) "
            "unless it is renewed. Wait for that search to end, stop it, or choose another --name."
        )

    # ------------------------------------------------------------ keeping
    @property
    def _names(self) -> dict[str, object]:
        here = Holder.here()
        return {
            "study": self._place.study_id, "owner": self._id,
            "host": here.host, "machine": here.machine, "pid": here.pid,
        }  # fmt: skip

    def _keep(self) -> None:
        pause_s = self._lease_s / RENEWALS
        while not self._stop.wait(pause_s):
            try:
                self._place.transact(self.renew, patience_s=pause_s)
            except TryAgain as error:  # lost, or the database is away for longer than a pause
                logger.warning("the lease on %s was not renewed: %s", self._place.name, error)
            except NasError as error:
                logger.warning("the study %s cannot be kept: %s", self._place.name, error)
                self._lost.set()
            if self.is_lost:
                return

    def renew(self, connection: "Connection") -> None:
        """Renew the lease in a transaction, or find that it is lost.

        What else the transaction writes is valid for the owner only: until it ends, nobody takes
        the study over.

        Raises:
            TryAgain: another process owns the study now.
            NasError: the study was deleted.
        """
        from sqlalchemy import text

        names = {"study": self._place.study_id, "owner": self._id, "lease_s": self._lease_s}
        renewed = connection.execute(
            text(
                f"UPDATE nas_leases SET expires_at = {self._place.now} + :lease_s "
                "WHERE study_id = :study AND owner = :owner"
            ),
            names,
        )
        if renewed.rowcount == 1:
            return
        there = text("SELECT 1 FROM studies WHERE study_id = :study")
        if connection.execute(there, names).one_or_none() is None:
            raise deleted(self._place.name)
        self._lost.set()
        raise TryAgain(
            f"the study {self._place.name!r} was taken over by another process while this one "
            "did not renew its lease. What was recorded is safe; this search stops here. Go on "
            "with --resume when the other one has ended."
        )


def deleted(name: str) -> NasError:
    """Return the error for a study that somebody deleted while it was searched."""
    return NasError(
        f"the study {name!r} is no longer in the database: it was deleted while it was "
        "searched. Begin the search again to make it anew."
    )


@contextmanager
def hold(study: "Study", *, lease_s: float = LEASE_S) -> Iterator[None]:
    """Own a study while the body runs; one in memory has no other process to be kept from.

    Raises:
        TryAgain: another process owns it, or the database stays locked or away.
    """
    if study.place is None:
        yield
        return
    lease = Lease(study.place, lease_s=lease_s)
    lease.take()
    study.lease = lease
    try:
        yield
    finally:
        study.lease = None
        lease.release()
