"""One owner of a study: refused, renewed, taken over, and fenced out when it lost its lease."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest

from nas.errors import NasError, TryAgain
from nas.study import Lease, Study, hold, owner_of
from nas.study.holder import Holder

Open = Callable[[], Study]

HOLD = """
import sys, time
from nas.study import Study, hold
with hold(Study.resume(sys.argv[2], storage=sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def add(study: Study, option: int) -> None:
    study.add({"a": option}, {"latency_ms": 1.0}, accuracy=0.5)


def place_of(study: Study) -> Any:
    assert study.place is not None
    return study.place


def let_pass(study: Study, seconds: float) -> None:
    """Move the end of a study's lease, as time would."""
    from sqlalchemy import text

    place = place_of(study)
    sql = text("UPDATE nas_leases SET expires_at = expires_at - :seconds WHERE study_id = :study")
    names = {"seconds": seconds, "study": place.study_id}
    place.transact(lambda connection: connection.execute(sql, names))


def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let what is done now be done by a process of another machine."""
    other = Holder(host="other", machine="another boot", pid=1)
    monkeypatch.setattr(Holder, "here", classmethod(lambda cls: other))


def test_a_second_owner_is_refused_and_told_who_it_is_and_until_when(opened: Open) -> None:
    with hold(opened()):
        with pytest.raises(TryAgain, match=rf"pid {os.getpid()} on .* until 20\d\d-") as caught:
            hold(opened()).__enter__()
        assert caught.value.exit_code == 75
    with hold(opened()):  # given back: free at once
        pass


def test_of_owners_that_come_at_once_one_gets_the_study(opened: Open) -> None:
    leases = [Lease(place_of(opened())) for _ in range(6)]
    won: list[Lease] = []
    start = threading.Barrier(len(leases))

    def take(lease: Lease) -> None:
        start.wait()
        try:
            lease.take()
        except TryAgain:
            return
        won.append(lease)

    threads = [threading.Thread(target=take, args=(lease,)) for lease in leases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    won[0].release()


def test_an_owner_renews_its_lease(opened: Open) -> None:
    with hold(opened(), lease_s=2.0):
        time.sleep(2.5)
        with pytest.raises(TryAgain):
            hold(opened()).__enter__()


def test_an_owner_that_was_killed_here_is_followed_at_once(opened: Open, either: str) -> None:
    study = opened()
    command = [sys.executable, "-c", HOLD, either, study.name]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None and child.stdout.readline() == "held\n"
    with pytest.raises(TryAgain, match=f"pid {child.pid}"):
        hold(study).__enter__()
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    with hold(study):
        add(study, 0)


def test_an_owner_elsewhere_is_followed_when_its_lease_is_over(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        elsewhere(patch)
        gone = Lease(place_of(opened()), lease_s=60.0)
        monkeypatch.setattr(gone, "_keep", lambda: None)
        gone._thread = threading.Thread(target=lambda: None)  # it renews nothing: killed
        gone.take()
    with pytest.raises(TryAgain, match="pid 1 on other"):
        hold(opened()).__enter__()
    let_pass(opened(), 60.0)
    with hold(opened()):
        pass


def test_an_owner_that_lost_its_lease_records_nothing_more(opened: Open) -> None:
    late, other = opened(), opened()
    with ExitStack() as held:
        with hold(late, lease_s=60.0):
            assert late.lease is not None
            late.lease._stop.set()  # as if it was suspended
            late.lease._thread.join()
            add(late, 0)
            let_pass(late, 60.0)
            held.enter_context(hold(other))
            add(other, 1)
            with pytest.raises(TryAgain, match="taken over by another process") as caught:
                add(late, 2)
            assert caught.value.exit_code == 75 and late.lease.is_lost
        assert owner_of(place_of(other)) is not None  # late gave back nothing that is not its own
        add(other, 3)
    assert [row.choice["a"] for row in other.trials] == [0, 1, 3]


def test_an_owner_whose_study_is_deleted_is_told(opened: Open, either: str) -> None:
    study = opened()
    with hold(study):
        Study.delete(study.name, storage=either)
        with pytest.raises(NasError, match="deleted while it was searched"):
            add(study, 0)


def test_a_lease_outlives_a_database_that_is_away_for_a_while(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sqlalchemy.exc import OperationalError

    study = opened()
    with hold(study, lease_s=0.3):
        lease, place = study.lease, place_of(study)
        real = type(place).transact
        assert lease is not None

        def away(*arguments: Any, **named: Any) -> Any:
            raise TryAgain("away") from OperationalError("x", {}, Exception("away"))

        monkeypatch.setattr(type(place), "transact", away)
        time.sleep(0.4)
        monkeypatch.setattr(type(place), "transact", real)
        time.sleep(0.3)
        assert not lease.is_lost
        add(study, 0)
        deadline_s = time.monotonic() + 20  # of a machine that stands still for a second
        while (owner := owner_of(place_of(study))) is None or owner.left_s <= 0:
            assert time.monotonic() < deadline_s, "it was never renewed"
            time.sleep(0.02)


def test_a_study_in_memory_needs_no_owner() -> None:
    study = Study.in_memory()
    with hold(study), hold(study):
        assert study.lease is None


def test_a_process_that_ended_and_was_not_waited_for_is_gone() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    holder = Holder(host="h", machine=Holder.here().machine, pid=child.pid)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert holder.is_gone and not Holder.here().is_gone
    child.wait()
    assert holder.is_gone
    assert not Holder(host="h", machine="another boot", pid=child.pid).is_gone
