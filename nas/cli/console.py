"""What every command shares: results on stdout, progress and errors on stderr, exit codes."""

import json
import logging
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from nas.errors import NasError

Progress = Callable[[int, int, str], None]
SECONDS_A_LINE = 15.0


class Terminated(BaseException):
    """SIGTERM came; what is finished is saved."""


@dataclass(slots=True)
class Options:
    """The flags every command takes."""

    json: bool = False
    quiet: bool = False
    verbose: int = 0
    debug: bool = False
    resume_words: list[str] = field(default_factory=list)
    has_emitted: bool = False  # stdout has its one JSON object


def emit(value: dict[str, Any], text: str, options: Options) -> None:
    """Print a result: one JSON object with --json, else the text for people."""
    options.has_emitted = True
    if options.json:
        print(json.dumps({"schema": 1, **value}, default=str))
    else:
        print(text)


def table(header: list[str], rows: list[list[Any]]) -> str:
    """Return rows as plain aligned columns, numbers to the right."""
    cells = [header, *[[_cell(value) for value in row] for row in rows]]
    widths = [max(len(row[c]) for row in cells) for c in range(len(header))]
    right = [all(_is_number(row[c]) for row in rows) and bool(rows) for c in range(len(header))]
    lines = []
    for row in cells:
        padded = [
            text.rjust(width) if to_right else text.ljust(width)
            for text, width, to_right in zip(row, widths, right, strict=True)
        ]
        lines.append("  ".join(padded).rstrip())
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


# ---------------------------------------------------------------- progress
def progress(options: Options) -> Callable[[str], Progress]:
    """Return where each stage reports: a bar on a terminal, else a line now and then."""

    def of(stage: str) -> Progress:
        if options.quiet:
            return lambda done, total, text: None
        if sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
            return _Bar(stage)
        return _Lines(stage)

    return of


class _Lines:
    """A line on stderr when a stage begins, every 15 s, and when it ends."""

    def __init__(self, stage: str) -> None:
        self.stage, self.begun, self.said, self.ended = stage, time.monotonic(), 0.0, False

    def __call__(self, done: int, total: int, text: str) -> None:
        now = time.monotonic()
        ends = done >= total and not self.ended
        if self.said and now - self.said < SECONDS_A_LINE and not ends:
            return
        self.said, self.ended = now, done >= total
        print(f"{self.stage} {done}/{total} {text} [{now - self.begun:.0f} s]", file=sys.stderr)


class _Bar:
    """A progress bar on stderr, drawn by rich."""

    def __init__(self, stage: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as RichProgress

        columns = (TextColumn("{task.description:<8}"), BarColumn(), MofNCompleteColumn())
        self.bar = RichProgress(
            *columns, TimeElapsedColumn(), TextColumn("{task.fields[note]}"),
            console=Console(stderr=True),
        )  # fmt: skip
        self.task = self.bar.add_task(stage, note="")
        self.running = False

    def __call__(self, done: int, total: int, text: str) -> None:
        if not self.running:
            self.bar.start()
            self.running = True
        self.bar.update(self.task, completed=done, total=total, note=text)
        if done >= total:
            self.bar.stop()
            self.running = False


# ---------------------------------------------------------------- the way out
@contextmanager
def guarded(options: Options) -> Iterator[None]:
    """Turn errors and signals into a sentence on stderr and the exit code CONTRIBUTING lists."""
    log = logging.getLogger("nas")
    level_before = log.level
    set_up_logging(options)
    terminate_before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    except NasError as error:
        if options.debug:
            raise
        fail(str(error), options, error.exit_code)
    except KeyboardInterrupt:
        fail(f"stopped; finished work is saved.{how_to_go_on(options)}", options, 130)
    except Terminated:
        fail(f"terminated; finished work is saved.{how_to_go_on(options)}", options, 143)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    finally:
        log.setLevel(level_before)
        signal.signal(signal.SIGTERM, terminate_before or signal.SIG_DFL)


def fail(message: str, options: Options, code: int) -> None:
    """Print an error for people, and exit; with --json also for programs, unless the result is out.

    A broken promise is an error behind a result that says so itself.
    """
    print(f"error: {message}", file=sys.stderr)
    if options.json and not options.has_emitted:
        print(json.dumps({"schema": 1, "error": message, "exit_code": code}))
    raise SystemExit(code)


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated


def how_to_go_on(options: Options) -> str:
    """Return a sentence with the command that continues this one, or nothing."""
    if not options.resume_words:
        return ""
    return f" Go on with:\n  {shlex.join(options.resume_words)}"


def set_up_logging(options: Options) -> None:
    """Send log records to stderr: warnings, with -v information, with -vv everything."""
    level = logging.ERROR if options.quiet else logging.WARNING
    level = {0: level, 1: logging.INFO}.get(options.verbose, logging.DEBUG)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("nas").setLevel(level)
