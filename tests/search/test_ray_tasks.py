"""Independent work as Ray tasks: done once each, whatever dies."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nas.errors import ConfigError, DeviceError, NasError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def _cluster() -> Iterator[None]:
    import ray

    from nas.search.ray_engine import join

    assert join(None)
    yield
    ray.shutdown()


def dying(folder: Path, times: dict[int, int]) -> Callable[[int], int]:
    """Return work that kills its worker so many times for a task, before it gives the square."""

    def work(task: int) -> int:
        deaths = len(list(folder.glob(f"{task}-*")))
        if deaths < times.get(task, 0):
            (folder / f"{task}-{deaths}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return task * task

    return work


def test_a_task_whose_worker_is_killed_is_begun_again(tmp_path: Path) -> None:
    from nas.search import each_by_ray

    found = sorted(each_by_ray(dying(tmp_path, {2: 2, 3: 1}), range(5), at_once=2))
    assert found == [(task, task * task) for task in range(5)]
    assert len(list(tmp_path.iterdir())) == 3


def test_a_task_that_kills_every_worker_ends_with_the_reason(tmp_path: Path) -> None:
    from nas.search import each_by_ray

    with pytest.raises(DeviceError, match="died 3 times"):
        list(each_by_ray(dying(tmp_path, {1: 99}), [1]))
    assert len(list(tmp_path.iterdir())) == 3


def test_what_a_task_raises_is_raised_here_and_not_tried_again(tmp_path: Path) -> None:
    from nas.search import each_by_ray

    def refuse(task: int) -> int:
        (tmp_path / f"{task}").touch(exist_ok=False)
        raise ConfigError(f"nothing of {task}.")

    with pytest.raises(ConfigError, match=r"nothing of 7\."):
        list(each_by_ray(refuse, [7]))
    with pytest.raises(NasError, match="ZeroDivisionError"):
        list(each_by_ray(lambda task: 1 // task, [0]))
