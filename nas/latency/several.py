"""A bench of several processes, because where a process happens to lie in memory changes times."""

import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from nas.latency.bench import Bench, ChildBench, Times, Visit
from nas.target import Target


class SeveralBench(Bench):
    """Runs the same networks in several child processes; rounds take turns with them.

    Code and memory of a process lie where its start happened to put them, and small networks are
    faster or slower for its whole life. A median over several processes has that averaged out.

    Args:
        target, timeout_s, loads: As of a ChildBench.
        processes: How many.
    """

    def __init__(self, target: Target, *, processes: int, timeout_s: float, loads: int) -> None:
        self._children = [
            ChildBench(target, timeout_s=timeout_s, loads=loads) for _ in range(processes)
        ]
        self._loads = loads
        self._started = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as started:
            made = started.enter_context(tempfile.TemporaryDirectory(prefix="nas-made-"))
            for child in self._children:
                child.cache = Path(made)
            with ThreadPoolExecutor(len(self._children)) as pool:  # imports take seconds
                entered = [pool.submit(child.__enter__) for child in self._children]
            for future in entered:
                if future.exception() is None:
                    started.push(future.result())
            for future in entered:
                future.result()  # or raise what kept one from starting; the others end
            self._started = started.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._started.__exit__(kind, error, trace)

    def load(self, name: str, path: Path) -> float:
        """Load a file in every process and return the milliseconds of one warm run."""
        return self.load_all({name: path})[name]

    def load_all(self, paths: Mapping[str, Path]) -> dict[str, float]:
        """Load files, all processes beside each other; return the least milliseconds of a run.

        Each begins at another file, so that what one makes of a file is there for the next one.
        """
        names = list(paths)
        share = -(-len(names) // len(self._children))

        def load(place: int) -> dict[str, float]:
            turned = names[place * share :] + names[: place * share]
            return {name: self._children[place].load(name, paths[name]) for name in turned}

        with ThreadPoolExecutor(len(self._children)) as pool:
            try:
                found = list(pool.map(load, range(len(self._children))))
            except BaseException:  # Ctrl-C, or one of them failed: the others need not go on
                for child in self._children:
                    child.kill()
                raise
        return {name: min(own[name] for own in found) for name in names}

    def unload(self) -> None:
        """Forget every network."""
        for child in self._children:
            child.unload()

    @property
    def places(self) -> int:
        """How often each network is loaded, by all processes together."""
        return self._loads * len(self._children)

    def run(self, visits: Sequence[Visit], *, turn: int = 0) -> list[Times]:
        """Make the visits, all in the process whose turn it is; see Bench."""
        again, place = divmod(turn, len(self._children))
        return self._children[place].run(visits, turn=again)

    def seconds(self) -> float:
        """Return the monotonic clock."""
        return self._children[0].seconds()


def bench_here(
    target: Target, *, processes: int, timeout_s: float, loads: int
) -> ChildBench | SeveralBench:
    """Return a bench of one process or several, to be used as a context."""
    if processes == 1:
        return ChildBench(target, timeout_s=timeout_s, loads=loads)
    return SeveralBench(target, processes=processes, timeout_s=timeout_s, loads=loads)
