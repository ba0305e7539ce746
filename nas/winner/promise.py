"""VerifyResult: what a winner promised, what was seen when it was checked, and what follows."""

import math
from dataclasses import dataclass, field, replace

from nas.block import parse_network
from nas.errors import BrokenPromise, ConfigError
from nas.latency.judge import SAME_SPEED
from nas.manifest import LATENCY, TargetResult, Winner
from nas.winner.quantized import int8_devices

STANDARD_ERRORS = 3.0
UNTRUSTED = "C"  # the grade of timings on a machine that others kept busy
ONNX_TOLERANCE = 1e-4  # largest difference of scores, relative to the largest score


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """One promise and whether it is kept; None where nothing was promised."""

    about: str
    text: str
    is_kept: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What the checking process saw; nothing but `changed_files` if there are any.

    `test` is the accuracy on test, from 0 to 1, and `test_int8` those of int8 files, by runtime.
    `onnx_error` is the largest difference between the ONNX file's scores and the reloaded
    network's, relative to the largest score; None where scores are not finite or not of one shape.
    """

    changed_files: tuple[str, ...] = ()
    test: float = 0.0
    test_images: int = 0
    test_int8: dict[str, float] = field(default_factory=dict)
    onnx_error: float | None = None
    params: int = 0
    latency: TargetResult | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyResult:
    """A checked winner. `winner` is its manifest with what was measured put in.

    Attributes:
        winner: As in winner.json after the check.
        target: Id of the Target it was timed on.
        statements: One for each promise, in the order they were checked.
    """

    winner: Winner
    target: str
    statements: tuple[Statement, ...]

    @property
    def is_kept(self) -> bool:
        """Return whether no promise is broken."""
        return not self.broken

    @property
    def broken(self) -> tuple[Statement, ...]:
        """Return the promises that are broken."""
        return tuple(row for row in self.statements if row.is_kept is False)

    @property
    def is_over_budget(self) -> bool:
        """Return whether it breaks a budget: another candidate may do better."""
        return any(row.about in self.winner.budgets or row.about == LATENCY for row in self.broken)

    def raise_if_broken(self) -> None:
        """Raise BrokenPromise, naming every promise that is not kept."""
        if self.broken:
            raise BrokenPromise(
                f"winner {self.winner.id} does not keep its promise: "
                + "; ".join(row.text for row in self.broken)
                + "."
            )


def judge(
    winner: Winner, seen: Seen, target: str, *, tolerance: float | None = None
) -> VerifyResult:
    """Return a winner's promises held against what was seen.

    Args:
        winner: The manifest as it was before the check.
        seen: What the checking process saw.
        target: Id of the Target it was timed on.
        tolerance: How far (0 to 1) test accuracy may lie below the promised accuracy on search;
            by default `chance`, what differs by the choice of images alone.
    """
    if tolerance is not None and not 0 <= tolerance <= 1:
        raise ConfigError(f"tolerance must be from 0 to 1, but is {tolerance}.")
    files = _files(seen)
    if seen.changed_files or seen.latency is None:
        return VerifyResult(winner=winner, target=target, statements=(files,))
    checked = with_seen(winner, seen, seen.latency)
    statements = (
        files,
        _onnx(seen),
        _accuracy(winner, seen, tolerance, _is_unscored(winner, target)),
        *_accuracy_int8(winner, seen, tolerance),
        _latency(checked, seen.latency),
        *_sizes(winner, seen),
    )
    return VerifyResult(winner=checked, target=target, statements=statements)


def with_seen(winner: Winner, seen: Seen, latency: TargetResult) -> Winner:
    """Return the manifest with test accuracy and latency as they were measured."""
    int8 = {
        runtime: replace(known, test=seen.test_int8.get(runtime))
        for runtime, known in winner.accuracy.int8.items()
    }
    accuracy = replace(winner.accuracy, test=seen.test, test_images=seen.test_images, int8=int8)
    known = winner.on(latency.target)
    row = latency.promised_as(known)
    others = [row if old.target == row.target else old for old in winner.targets]
    targets = tuple(others) if known else (*winner.targets, row)
    return replace(winner, accuracy=accuracy, targets=targets)


def chance(promised: float, search_images: int, test_images: int) -> float:
    """Return three standard errors of the difference of two accuracies on so many images.

    Where the number of search images is not known it is taken to be that of test. One more right
    and one more wrong answer are counted (Agresti and Caffo), or 100 % would allow nothing.
    """
    search_images = search_images or test_images
    share = (promised * search_images + 1) / (search_images + 2)
    return STANDARD_ERRORS * math.sqrt(share * (1 - share) * (1 / search_images + 1 / test_images))


# ---------------------------------------------------------------- statements
def _files(seen: Seen) -> Statement:
    if seen.changed_files:
        names = ", ".join(seen.changed_files)
        text = f"{names}: not the file that was exported (missing or changed); nothing was measured"
        return Statement(about="files", text=text, is_kept=False)
    return Statement(about="files", text="files are as they were exported", is_kept=True)


def _onnx(seen: Seen) -> Statement:
    if seen.onnx_error is None:
        text = "the scores of the ONNX file and the reloaded timm folder cannot be compared"
        return Statement(about="onnx", text=text, is_kept=False)
    kept = seen.onnx_error <= ONNX_TOLERANCE
    text = f"the ONNX file and the reloaded timm folder differ by {seen.onnx_error:.1e}"
    text += "" if kept else f", but only {ONNX_TOLERANCE:.0e} is allowed"
    return Statement(about="onnx", text=text, is_kept=kept)


def _accuracy(winner: Winner, seen: Seen, tolerance: float | None, is_unscored: bool) -> Statement:
    text, kept = _held(winner.accuracy.search, seen.test, winner, seen, tolerance)
    text = f"test accuracy {text}"
    if is_unscored:
        text += "; of the fp32 network, for the folder has no int8 file that this target runs"
    return Statement(about="accuracy", text=text, is_kept=kept)


def _accuracy_int8(winner: Winner, seen: Seen, tolerance: float | None) -> list[Statement]:
    rows = []
    for runtime, promised in winner.accuracy.int8.items():
        test = seen.test_int8.get(runtime)
        text, kept = f"the int8 file that was promised for {runtime} was not scored", False
        if test is not None:
            text, kept = _held(promised.search, test, winner, seen, tolerance)
            text = f"test accuracy in int8 by {runtime} {text}"
        rows.append(Statement(about=f"accuracy_int8:{runtime}", text=text, is_kept=kept))
    return rows


def _held(
    promised: float, test: float, winner: Winner, seen: Seen, tolerance: float | None
) -> tuple[str, bool]:
    """Return an accuracy on test against the one on search, in words, and whether it is kept."""
    if tolerance is None:
        tolerance = chance(promised, winner.accuracy.search_images, seen.test_images)
    text = (
        f"{100 * test:.1f} % of {seen.test_images} images against {100 * promised:.1f} % on "
        f"search, {100 * tolerance:.1f} points less allowed"
    )
    return text, test >= promised - tolerance


def _is_unscored(winner: Winner, target: str) -> bool:
    """Return whether a target runs int8 while only the fp32 network was scored."""
    scored = int8_devices([target]).keys() & winner.accuracy.int8.keys()
    return "_int8_" in target and not scored


def _latency(winner: Winner, latency: TargetResult) -> Statement:
    budget = winner.latency_budget_ms(latency.target)
    judged = latency.judged_ms(winner.statistic)
    assert latency.measured_ms is not None
    row = winner.on(latency.target)
    speed = "" if row is None else told_speed(row)
    speed = f"; the machine is {speed}" if speed else ""
    words = "95th percentile" if winner.statistic == "p95" else "up to"
    most = f"{words} {judged:.4g}" if judged is not None else f"no {words} was taken"
    text = f"{latency.measured_ms:.4g} ms ({most}, grade {latency.grade}) on {latency.target}"
    if budget is None:
        promised = ", ".join(metric for metric in winner.budgets if metric.startswith(LATENCY))
        text += f"{speed}; no latency was promised there (promised: {promised or 'none'})"
        return Statement(about=LATENCY, text=text, is_kept=None)
    share = math.inf if judged is None else judged / budget
    use = latency.measured_ms / budget
    verdict = f"met, {100 * use:.0f} % of it used" if share <= 1 else f"over by {_over(share)}"
    if share > 1 and latency.grade == UNTRUSTED:
        verdict += ", by a timing that is not to be trusted: verify again when the machine is quiet"
    if judged is None:
        verdict = f"cannot be held against the {words} that was promised"
    return Statement(
        about=LATENCY, text=f"{text} against a budget of {budget:.4g} ms: {verdict}{speed}",
        is_kept=share <= 1,
    )  # fmt: skip


def told_speed(latency: TargetResult) -> str:
    """Return how the machine's speed differed from that promised for; "" where it hardly did."""
    if latency.slower is None or latency.measured_ms is None:
        return ""
    if abs(latency.slower - 1) < SAME_SPEED:
        return ""
    how = "slower" if latency.slower > 1 else "faster"
    return (
        f"{100 * abs(latency.slower - 1):.0f} % {how} than where that was promised, at whose speed "
        f"it takes {latency.measured_ms / latency.slower:.4g} ms"
    )


def _over(share: float) -> str:
    return f"{100 * (share - 1):.1f} %" if share >= 1.001 else "less than 0.1 %"


def _sizes(winner: Winner, seen: Seen) -> list[Statement]:
    """Return the promises of size; that of parameters is counted in the reloaded network."""
    blocks = parse_network(winner.blocks)
    sizes = {
        "params": seen.params,
        "bytes": 4 * seen.params,
        "macs": sum(block.macs for block in blocks),
    }
    rows = []
    for metric, size in sizes.items():
        if metric in winner.budgets:
            budget = winner.budgets[metric]
            verdict = "met" if size <= budget else f"over by {_over(size / budget)}"
            text = f"{size:,} {metric} against a budget of {budget:,.0f}: {verdict}"
            rows.append(Statement(about=metric, text=text, is_kept=size <= budget))
    return rows
