"""Whether a winner keeps its promise, found out by a fresh process that has only its folder.

The child (`python -c CHILD`) reads one JSON request from stdin, answers with one JSON object on
stdout and reports progress as JSON lines on stderr. This is the one place where test images are
opened.
"""

import collections
import json
import math
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from nas import errors, network
from nas.data import Split, eval_batches, load_test
from nas.errors import ConfigError, CorruptFile, DeviceError, NasError
from nas.files import into, to_plain, write_atomic
from nas.latency import ProfileConfig, measure_networks
from nas.latency.bench import Bench
from nas.latency.guard import guard_file
from nas.latency.judge import Known
from nas.manifest import TargetResult, Winner
from nas.target import PARTS, Target
from nas.winner import card
from nas.winner.compare import network_scores, onnx_scores, relative_error
from nas.winner.latency import promised_speed, result_of, trusted
from nas.winner.promise import Seen, VerifyResult, judge
from nas.winner.quantized import ONNX, int8_accuracy, int8_runtimes, timed_file

# not `-m nas.winner.verify`: that would import this file twice, once as nas.winner.verify
CHILD = "from nas.winner.verify import main; main()"
NAME = "the winner"
COMPARED_IMAGES = 32
BATCH_SIZE = 256
LAST_WORDS = 5  # lines of the child's stderr that go into an error

Progress = Callable[[int, int, str], None]


def silent(done: int, total: int, text: str) -> None:
    """Report no progress."""


def verify(
    folder: Path | str,
    *,
    target: Target,
    data_name: str | None = None,
    config: ProfileConfig | None = None,
    known: Known | None = None,
    tolerance: float | None = None,
    progress: Progress = silent,
    timeout_s: float = 600.0,
) -> VerifyResult:
    """Check a winner's folder in a fresh process; put what was measured into winner.json.

    Files, accuracy on the test split (in int8 too, where the folder has such a file), agreement of
    the ONNX file with the network, latency of the ONNX or the int8 file on the target, sizes: all
    of the folder as it lies there. Where files have changed nothing is measured nor written. The
    README's table is renewed with winner.json.

    Args:
        folder: What `export` wrote.
        target: What to time it on; must be this machine's.
        data_name: The data set whose test split is scored; by default the winner's.
        config: How carefully to time, in as many processes as `for_winners` says.
        known: That of the latency table the promise rests on, if it is at hand. The machine is
            waited for until it is as fast as it was where the latency was promised.
        tolerance: See `judge`.
        progress: Told (done, total, text).
        timeout_s: How long the process may say nothing.

    Returns:
        Each promise and whether it is kept; `raise_if_broken` makes an error of it.

    Raises:
        CorruptFile: winner.json is missing or damaged, or the exported files cannot be loaded.
        ConfigError: no data set is named, or it has other classes than the winner.
        UnreliableTiming: the machine is too busy to time anything.
        DeviceError: the target is not this machine's, or the process crashed or hung.
    """
    folder = Path(folder)
    winner = Winner.load(folder)
    timing = {
        "target": target.to_json(),
        "config": to_plain((config or ProfileConfig()).for_winners()),
        "known": to_plain(promised_speed(winner, target, known or Known())),
    }
    seen = _seen(folder, winner, data_name, timing, progress, timeout_s)
    return _judged(folder, winner, seen, target, tolerance)


def verify_elsewhere(
    folder: Path | str,
    latency: Callable[[Path], TargetResult],
    *,
    target: Target,
    data_name: str | None = None,
    tolerance: float | None = None,
    progress: Progress = silent,
    timeout_s: float = 600.0,
) -> VerifyResult:
    """Check a winner's folder as `verify` does, its latency on a device that is elsewhere.

    Args:
        folder: What `export` wrote.
        latency: Returns what that device takes for the folder; asked when all else is looked at.
        target: What the device is.
        data_name: As in `verify`, like all that follow and the errors.
        tolerance: See `judge`.
        progress: Told (done, total, text).
        timeout_s: How long the process may say nothing.
    """
    folder = Path(folder)
    winner = Winner.load(folder)
    seen = _seen(folder, winner, data_name, {}, progress, timeout_s)
    if not seen.changed_files:
        seen = replace(seen, latency=latency(folder))
    return _judged(folder, winner, seen, target, tolerance)


def _seen(
    folder: Path,
    winner: Winner,
    data_name: str | None,
    timing: dict[str, Any],
    progress: Progress,
    timeout_s: float,
) -> Seen:
    """Return what a fresh process sees of the folder; nothing if files have changed."""
    name = data_name or winner.data
    if not name:
        raise ConfigError(f"{folder}/winner.json names no data set; say which one to score.")
    changed = winner.changed_files(folder) if winner.files else (ONNX,)
    if changed:
        return Seen(changed_files=changed)
    request = {"folder": os.path.abspath(folder), "data": name, **timing}
    plain = _ask_child(request, progress, timeout_s)
    return into(Seen, plain, source="the verifying process", error=DeviceError)


def _judged(
    folder: Path, winner: Winner, seen: Seen, target: Target, tolerance: float | None
) -> VerifyResult:
    """Return what follows, put into winner.json and the model card."""
    result = judge(winner, seen, target.id, tolerance=tolerance)
    if result.winner != winner:
        result.winner.save(folder)
        _renew_card(folder, result.winner)
    return result


def _renew_card(folder: Path, winner: Winner) -> None:
    path = folder / "README.md"
    if path.is_file():
        text = path.read_text(encoding="utf-8")
        write_atomic(path, card.update(text, winner))


# ---------------------------------------------------------------- the parent's side
def _ask_child(request: dict[str, Any], progress: Progress, timeout_s: float) -> Any:
    """Return the child's answer, or raise the error it met as the error it is."""
    with tempfile.TemporaryFile() as answer:
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD],
            stdin=subprocess.PIPE,
            stdout=answer,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the parent, which ends the child
        )
        try:
            words = _follow(child, json.dumps(request).encode(), progress, timeout_s)
        finally:
            child.kill()  # does nothing to one that has ended
            code = child.wait()
            for stream in (child.stdin, child.stderr):
                assert stream is not None
                stream.close()
        answer.seek(0)
        raw = answer.read()
    try:
        message = json.loads(raw)
    except ValueError:
        reason = f"with signal {-code}" if code < 0 else f"with code {code}"
        raise DeviceError(
            f"the verifying process ended {reason} and no answer. Its last words: "
            f"{' | '.join(words) or 'none'}"
        ) from None
    if "seen" in message:
        return message["seen"]
    kind = getattr(errors, str(message["error"]), NasError)
    raise kind(message["text"])


def _follow(
    child: "subprocess.Popen[bytes]", request: bytes, progress: Progress, timeout_s: float
) -> list[str]:
    """Send the request, hand progress on until the child is silent for good; its last words."""
    assert child.stdin is not None and child.stderr is not None
    try:
        child.stdin.write(request)
        child.stdin.close()
    except OSError:
        pass  # it ended already; what it said tells why
    words: collections.deque[str] = collections.deque(maxlen=LAST_WORDS)
    buffer = b""
    deadline = time.monotonic() + timeout_s
    while True:
        if not select.select([child.stderr], [], [], max(0, deadline - time.monotonic()))[0]:
            raise DeviceError(
                f"the verifying process said nothing for {timeout_s:.0f} s and was ended. "
                f"Its last words: {' | '.join(words) or 'none'}"
            )
        chunk = os.read(child.stderr.fileno(), 1 << 16)
        if not chunk:
            return list(words)
        deadline = time.monotonic() + timeout_s
        *lines, buffer = (buffer + chunk).split(b"\n")
        for line in lines:
            step = _progress_line(line)
            if step is not None:
                progress(*step)
            elif line.strip():
                words.append(line.decode(errors="replace").strip())


def _progress_line(line: bytes) -> tuple[int, int, str] | None:
    try:
        done, total, text = json.loads(line)["progress"]
    except (ValueError, KeyError, TypeError):
        return None
    return int(done), int(total), str(text)


# ---------------------------------------------------------------- the child's side
def examine(folder: Path, data_name: str, progress: Progress = silent) -> Seen:
    """Look at a winner's folder as a stranger would, all but its latency.

    Args and errors are those of `verify`.
    """
    progress(0, 1, "loading the exported network")
    model = _load(folder)
    test = load_test(
        data_name, image_size=model.pretrained_cfg["input_size"][-1], progress=progress
    )
    accuracy, shown = _accuracy(model, test, progress), _Shown.of(model)
    int8 = {
        runtime: int8_accuracy(runtime, folder, test, shown, progress)
        for runtime in int8_runtimes(Winner.load(folder).files)
    }
    images, _ = next(eval_batches(test, shown, batch_size=COMPARED_IMAGES))
    error = relative_error(onnx_scores(folder / ONNX, images), network_scores(model, images))
    return Seen(
        test=accuracy,
        test_images=len(test),
        test_int8=int8,
        onnx_error=error if math.isfinite(error) else None,
        params=sum(parameter.numel() for parameter in model.parameters()),
    )


def measure(
    folder: Path,
    target: Target,
    config: ProfileConfig,
    progress: Progress = silent,
    *,
    known: Known | None = None,
    bench: Bench | None = None,
) -> TargetResult:
    """Return the latency of what the target's runtime takes: the folder, or one of its ONNX files.

    An ONNX file for another batch than 1 is made anew; for an int8 target without a file of its
    own the runtime quantizes it. It runs on `bench`, by default in a child process of this one.
    """
    with tempfile.TemporaryDirectory(prefix="nas-verify-") as scratch:
        takes_folder = target.takes == PARTS
        is_elsewhere = bench is not None
        file = folder if takes_folder else timed_file(folder, target, elsewhere=is_elsewhere)
        if target.batch != 1 and not takes_folder:
            file = network.to_onnx(_load(folder), Path(scratch) / ONNX, batch=target.batch)
        timing = measure_networks(
            {NAME: file},
            target,
            config,
            progress=progress,
            known=known,
            guard=guard_file(file, target, Path(scratch)),
            bench=bench,
        )[NAME]
    return result_of(timing, target)


def _load(folder: Path) -> Any:  # Any: a timm model, of whatever class
    """Return the network as the README says to load it; importing nas.network registered ours."""
    try:
        return network.load_folder(folder).eval()
    except CorruptFile as error:
        raise CorruptFile(f"{error} Export the winner again.") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shown:
    """The normalisation that the exported configuration tells a stranger to use."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, model: Any) -> "_Shown":
        config = model.pretrained_cfg
        return cls(mean=tuple(config["mean"]), std=tuple(config["std"]))


def _accuracy(model: Any, test: Split, progress: Progress) -> float:
    """Return the share of test images that the network gets right."""
    if int(test.labels.max()) >= model.num_classes:
        raise ConfigError(
            f"the winner knows {model.num_classes} classes, but the test split has a label "
            f"{int(test.labels.max())}. Name the data set it was trained on."
        )
    right = done = 0
    for images, labels in eval_batches(test, _Shown.of(model), batch_size=BATCH_SIZE):
        right += int((network_scores(model, images).argmax(dim=1) == labels).sum())
        done += len(labels)
        progress(done, len(test), "scoring test images")
    return right / len(test)


def main() -> None:
    """Serve the one request on stdin."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not look like an answer
    request = json.load(sys.stdin)

    def progress(done: int, total: int, text: str) -> None:
        sys.stderr.write(json.dumps({"progress": [done, total, text]}) + "\n")

    try:
        folder = Path(request["folder"])
        seen = examine(folder, request["data"], progress)
        if "target" in request:
            target = Target.from_json(request["target"])
            config = into(ProfileConfig, request["config"], source="config")
            known = into(Known, request["known"], source="known")
            once = partial(measure, folder, target, config, progress, known=known)
            seen = replace(seen, latency=trusted(Winner.load(folder), once))
        answer = {"seen": to_plain(seen)}
    except NasError as error:
        answer = {"error": type(error).__name__, "text": str(error)}
    answers.write(json.dumps(answer, allow_nan=False))
    answers.close()
