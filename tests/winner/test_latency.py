"""A winner's latency is measured again where others may be why it is over its budget."""

from collections.abc import Sequence

import pytest

from nas.latency.judge import Known
from nas.manifest import Accuracy, Ancestry, TargetResult, Winner
from nas.space import SearchSpace
from nas.target import Target
from nas.winner.latency import promised_speed, trusted

HERE = "onnxruntime-1.31.1_fp32_nchw_b1_t1@a-x86_64"
SPACE = SearchSpace.load("tiny").replace(num_classes=10)
PROMISED_MS = 0.05  # the reference, where the latency was promised


def promised(reference_ms: float | None = None) -> Winner:
    """Return a winner with a budget of 1 ms, promised at that speed of the machine."""
    row = TargetResult(target=HERE, predicted_ms=0.9, reference_promised_ms=reference_ms)
    smallest = SPACE.smallest()
    return Winner(
        architecture=smallest.to_json(),
        blocks=tuple(map(str, SPACE.blocks(smallest))),
        accuracy=Accuracy(search=0.98),
        budgets={"latency_ms": 1.0},
        targets=(row,),
        ancestry=Ancestry(study="s", trial=3),
    )


def test_a_budget_that_stays_missed_is_looked_at_for_some_minutes_and_no_longer() -> None:
    row = TargetResult(target=HERE, measured_ms=1.3, ci_high_ms=1.3, grade="C")
    pauses: list[float] = []
    assert trusted(promised(), lambda: row, pause=pauses.append).measured_ms == 1.3
    assert pauses == sorted(pauses) and 60 < sum(pauses) < 300


def taken(winner: Winner, rows: Sequence[tuple[float, str, float]]) -> tuple[TargetResult, int]:
    """Return what is found of timings (ms, grade, reference ms) in turn, and how many are left."""
    left = [
        TargetResult(
            target=HERE, measured_ms=ms, ci_high_ms=ms, grade=grade, reference_measured_ms=beside
        )
        for ms, grade, beside in rows
    ]
    found = trusted(winner, lambda: left.pop(0), pause=lambda seconds: None)
    return found, len(left)


SAME, SLOW = PROMISED_MS, 1.2 * PROMISED_MS
MISSED, MET, MET_AT_C = (1.3, "C", SAME), (0.9, "B", SAME), (0.95, "C", SAME)


@pytest.mark.parametrize(
    ("rows", "expected_ms", "unused"),
    [
        ((MISSED, MET), 0.9, 0),
        ((MISSED, (1.2, "B", SAME), MET), 1.2, 1),  # trusted, and over
        ((MISSED, (1.4, "C", SAME), (1.5, "C", SAME), (1.2, "C", SAME), MET), 1.2, 1),
        ((MISSED, (1.4, "C", SAME), MET_AT_C, MET), 0.95, 1),
        (((1.3, "B", SAME), MET), 1.3, 1),  # trusted at once
        ((MET_AT_C, MET), 0.95, 1),  # met at once
        (((1.15, "A", SLOW), MET), 0.9, 0),  # at another speed than was promised
        (((1.15, "A", SLOW), (1.05, "B", SAME), MET), 1.05, 1),  # at that speed, and over
        (((1.15, "A", SLOW), (1.02, "C", SAME), MET_AT_C), 0.95, 0),
        (((0.99, "B", SLOW), MET), 0.99, 1),  # met even so
    ],
)
def test_a_budget_missed_while_others_had_the_processor_is_looked_at_again(
    rows: Sequence[tuple[float, str, float]], expected_ms: float, unused: int
) -> None:
    found, left = taken(promised(PROMISED_MS), rows)
    assert (found.measured_ms, left) == (expected_ms, unused)


def test_a_budget_missed_on_a_machine_that_others_had_at_times_is_looked_at_again() -> None:
    def row(ms: float, p95_ms: float) -> TargetResult:
        return TargetResult(target=HERE, measured_ms=ms, ci_high_ms=ms, p95_ms=p95_ms, grade="B")

    def found(*rows: TargetResult) -> float | None:
        left = list(rows)
        return trusted(promised(), lambda: left.pop(0), pause=lambda _: None).measured_ms

    assert found(row(1.08, 2.2), row(0.97, 2.1)) == 0.97
    assert found(row(1.08, 2.2), row(1.05, 1.1), row(0.9, 1.0)) == 1.05, "quiet, and over"
    assert found(row(1.08, 1.2), row(0.9, 1.0)) == 1.08, "it was quiet"


def test_where_no_speed_was_noted_a_timing_that_can_be_trusted_is_final() -> None:
    assert taken(promised(), ((1.15, "A", SLOW), MET))[0].measured_ms == 1.15


def test_the_machine_is_waited_for_until_it_is_as_fast_as_was_promised() -> None:
    target = Target.from_id(HERE)
    table = Known(reference_ms=0.04, guard_by_reference=3.0)
    assert promised_speed(promised(PROMISED_MS), target, table) == Known(
        reference_ms=PROMISED_MS, guard_by_reference=3.0
    )
    assert promised_speed(promised(), target, table) == table
    elsewhere = Target.from_id(HERE.replace("@a-", "@b-"))
    assert promised_speed(promised(PROMISED_MS), elsewhere, table) == table
