"""Ray as the place where independent pieces of work are done: tasks, begun again if they die."""

import logging
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import ray
from ray.exceptions import RayError

from nas.errors import DeviceError, NasError
from nas.search.ray_engine import ATTEMPTS, first_line, join

T = TypeVar("T")
R = TypeVar("R")
logger = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Attempt(Generic[T]):
    task: T
    number: int = 1


def each_by_ray(
    work: Callable[[T], R],
    tasks: Sequence[T],
    *,
    at_once: int | None = None,
    address: str | None = None,
) -> Iterator[tuple[T, R]]:
    """Yield (task, its result) as they are done, each a Ray task with one CPU.

    `work` goes into the object store once, with all it holds. A task whose worker dies is begun
    again, twice; tasks for which there is no free CPU wait for one, so nodes that join are used.

    Args:
        work: What is done; it and the tasks travel to other processes.
        tasks: In the order they are begun.
        at_once: Tasks at most at a time; None is as many as there are CPUs for.
        address: "auto" or "HOST:PORT" of a running cluster, with the same hybrid-nas there; None
            starts Ray on this machine.

    Raises:
        DeviceError: there is no cluster at the address, or a task's workers died three times.
        NasError: what a piece of work raised; the others are stopped.
    """
    owns_ray = join(address)
    running: dict[Any, _Attempt[T]] = {}  # Any: Ray's references
    try:
        stored = ray.put(work)
        call: Any = ray.remote(_call)  # Any: Ray makes its methods as it goes
        call = call.options(num_cpus=1, max_retries=0)  # Ray's own retries have no bound
        waiting = [_Attempt(task) for task in tasks][::-1]
        while waiting or running:
            while waiting and (at_once is None or len(running) < at_once):
                attempt = waiting.pop()
                running[call.remote(stored, attempt.task)] = attempt
            (done, *_), _ = ray.wait(list(running))
            attempt = running.pop(done)
            try:
                result, problem = ray.get(done)
            except RayError as error:
                waiting.append(_again(attempt, error))
                continue
            if problem is not None:
                raise problem
            yield attempt.task, result
    finally:
        for reference in running:
            ray.cancel(reference, force=True)
        if owns_ray:
            ray.shutdown()


def _again(attempt: _Attempt[T], error: RayError) -> _Attempt[T]:
    """Return the next attempt at a task whose worker died; raise if there were enough."""
    if attempt.number == ATTEMPTS:
        raise DeviceError(
            f"the worker of a task died {ATTEMPTS} times: {first_line(error)}. What is finished is "
            "kept: start the command again, with fewer --jobs if the memory was full."
        ) from error
    logger.warning("a worker died and its task is begun again: %s", first_line(error))
    return _Attempt(attempt.task, attempt.number + 1)


def _call(work: Callable[[T], R], task: T) -> tuple[R | None, NasError | None]:
    """Return what the work gives, or what it raises as an error that can travel."""
    try:
        return work(task), None
    except NasError as error:
        return None, error
    except Exception:
        return None, NasError(f"a task at work failed:\n{traceback.format_exc()}")
