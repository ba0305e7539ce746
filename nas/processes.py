"""Many pieces of work in processes of their own, which end with the one that started them."""

import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

from nas.errors import NasError

Task = TypeVar("Task")
Result = TypeVar("Result")
LEAVE_S = 10.0


def each(
    work: Callable[[Task], Result], tasks: Sequence[Task], *, jobs: int
) -> Iterator[tuple[Task, Result]]:
    """Yield (task, its result) as they are done, by as many processes at once.

    Args:
        work: What is done; it and the tasks travel to other processes. What it loads once it may
            keep in its module.
        tasks: In the order they are begun.
        jobs: Processes; 1 does the work in this one, in order.

    Raises:
        NasError: what a piece of work raised, or that its process ended; the others are stopped.
    """
    if jobs == 1:
        for task in tasks:
            yield task, work(task)
        return
    context = multiprocessing.get_context("spawn")
    waiting = list(enumerate(tasks))[::-1]
    children: dict[Connection, Any] = {}  # Any: multiprocessing's process of that context
    try:
        for _ in range(min(jobs, len(tasks))):
            own, other = context.Pipe()
            child = context.Process(target=_serve, args=(other, work), daemon=True)
            child.start()
            other.close()
            children[own] = child
            own.send(waiting.pop())
        while children:
            for ready in wait(list(children)):
                assert isinstance(ready, Connection)
                number, result = _received(ready)
                if waiting:
                    ready.send(waiting.pop())
                else:
                    ready.close()
                    _leave(children.pop(ready))
                yield tasks[number], result
    finally:
        for connection, child in children.items():
            child.kill()
            child.join()
            connection.close()


def _leave(child: Any) -> None:  # Any: multiprocessing's process of that context
    """Let a process end that has nothing left to do; one that hangs on its way out is killed."""
    child.join(LEAVE_S)
    child.kill()
    child.join()


def _received(connection: Connection) -> tuple[int, Any]:
    try:
        number, result, problem = connection.recv()
    except (EOFError, ConnectionError) as error:
        raise NasError(
            "a process that was at work ended without a word: it was killed, or the memory was "
            "full. What is finished is kept: start the command again, with fewer --jobs."
        ) from error
    if isinstance(problem, NasError):
        raise problem
    if problem is not None:
        raise NasError(f"a process at work failed:\n{problem}")
    return number, result


def _serve(connection: Connection, work: Callable[[Any], Any]) -> None:
    """Do what is sent until there is nobody left to send."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent stops us
    while True:
        try:
            number, task = connection.recv()
        except (EOFError, ConnectionError):
            return
        result: Any = None
        problem: NasError | str | None = None
        try:
            result = work(task)
        except NasError as error:
            problem = error
        except Exception:
            problem = traceback.format_exc()
        try:
            connection.send((number, result, problem))
        except (BrokenPipeError, ConnectionError):
            return


def end_without_parent() -> None:
    """End this process if it serves one that is gone; called now and then by long work."""
    parent = multiprocessing.parent_process()
    if parent is not None and parent.pid != os.getppid():
        os._exit(1)
