"""The search engine: any table of genes, accuracies and costs, under hard budgets."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from nas.errors import DeviceError
from nas.search.allocate import Allocation, Group, allocate
from nas.search.budgets import parse_budget, parse_budgets, parse_latency
from nas.search.crew import Crew
from nas.search.mind import Mind, Problem, Proposal
from nas.search.options import Mode, RankBy, SearchOptions
from nas.search.queued import QueueExecutor
from nas.search.run import run
from nas.search.samplers import SAMPLERS
from nas.search.worker import work

if TYPE_CHECKING:
    from nas.search.ray_engine import RayExecutor
    from nas.search.ray_tasks import each_by_ray
    from nas.search.ray_tune import tune_searcher

__all__ = [
    "SAMPLERS",
    "Allocation",
    "Crew",
    "Group",
    "Mind",
    "Mode",
    "Problem",
    "Proposal",
    "QueueExecutor",
    "RankBy",
    "RayExecutor",
    "SearchOptions",
    "allocate",
    "each_by_ray",
    "parse_budget",
    "parse_budgets",
    "parse_latency",
    "run",
    "tune_searcher",
    "work",
]

BY_RAY = {"RayExecutor": "ray_engine", "each_by_ray": "ray_tasks", "tune_searcher": "ray_tune"}


def __getattr__(name: str) -> Any:  # Any: whatever the name stands for
    """Import what needs Ray at its first use: Ray takes seconds.

    Raises:
        DeviceError: Ray is not installed.
    """
    if name not in BY_RAY:
        raise AttributeError(f"module 'nas.search' has no attribute {name!r}")
    try:
        return getattr(import_module(f"nas.search.{BY_RAY[name]}"), name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "ray":
            raise
        raise DeviceError(
            f"Ray is not installed here ({error}). Install it with `pip install 'ray[tune]'`, or "
            "leave out --engine ray."
        ) from error
