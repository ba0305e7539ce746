"""Worker processes on this machine: as many as asked for, begun anew when they end."""

import contextlib
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from nas.errors import ConfigError, CorruptFile, DeviceError, NasError

Process: TypeAlias = "subprocess.Popen[bytes]"

# A worker that ends with one of these would end with it again.
FINAL = (ConfigError.exit_code, DeviceError.exit_code, CorruptFile.exit_code)
DEATHS = 6  # of each worker in a row without any result
PAUSE_S = 1.0  # between two starts of a worker
STOP_S = 5.0
_TAIL_BYTES = 4096


class Crew:
    """So many worker processes, each with a pipe to its standard input.

    The pipe closes when this process ends, however it ends: a worker should end then too.
    """

    def __init__(self, count: int, start: Callable[[], Process], *, log: Path) -> None:
        """Begin nothing yet.

        Args:
            count: How many.
            start: Starts one, with `stdin=PIPE`.
            log: Where the workers' standard error goes; its last line explains an end.

        Raises:
            ConfigError: not a number of workers.
        """
        if count < 1:
            raise ConfigError(f"workers must be at least 1, but are {count}.")
        self._start = start
        self._log = log
        self._places: list[Process | None] = [None] * count
        self._begun_s = [-PAUSE_S] * count
        self._deaths = 0

    @property
    def pids(self) -> tuple[int, ...]:
        """The processes that run now."""
        return tuple(p.pid for p in self._places if p is not None and p.poll() is None)

    def praise(self) -> None:
        """Note that a result came: the workers work."""
        self._deaths = 0

    def keep(self) -> None:
        """Start every worker that is not running.

        Raises:
            NasError: they end as soon as they begin, or one ended with what will not change.
        """
        for index, process in enumerate(self._places):
            if process is not None and process.poll() is None:
                continue
            if process is not None:
                self._places[index] = None
                self._close(process)
                self._count(process.returncode)
            now_s = time.monotonic()
            if now_s - self._begun_s[index] >= PAUSE_S:
                self._begun_s[index] = now_s
                self._places[index] = self._start()

    def _count(self, code: int) -> None:
        self._deaths += 1
        if code in FINAL or self._deaths >= DEATHS * len(self._places):
            raise NasError(f"a worker ended with {_named(code)}: {self._last_words()}")

    def stop(self) -> None:
        """End every worker: it gives back what it has, or is killed after a while."""
        running = [process for process in self._places if process is not None]
        self._places = [None] * len(self._places)
        for process in running:
            self._close(process)
            process.terminate()
        end_s = time.monotonic() + STOP_S
        for process in running:
            try:
                process.wait(max(end_s - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    @staticmethod
    def _close(process: Process) -> None:
        if process.stdin is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()

    def _last_words(self) -> str:
        try:
            with open(self._log, "rb") as stream:
                stream.seek(max(self._log.stat().st_size - _TAIL_BYTES, 0))
                lines = stream.read().decode(errors="replace").splitlines()
        except OSError:
            return "it left no log."
        said = [line.strip() for line in lines if line.strip()]
        return f"{said[-1]} ({self._log})" if said else f"it said nothing ({self._log})."


def _named(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"
