"""The search engine: any table of genes, accuracies and costs, under hard budgets."""

from typing import TYPE_CHECKING, Any

from nas.search.allocate import Allocation, Group, allocate
from nas.search.budgets import parse_budget, parse_budgets, parse_latency
from nas.search.crew import Crew
from nas.search.options import Mode, RankBy, SearchOptions
from nas.search.queued import QueueExecutor
from nas.search.run import run
from nas.search.samplers import SAMPLERS, Mind, Problem, Proposal
from nas.search.worker import work

if TYPE_CHECKING:
    from nas.search.ray_engine import RayExecutor
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
    "parse_budget",
    "parse_budgets",
    "parse_latency",
    "run",
    "tune_searcher",
    "work",
]


def __getattr__(name: str) -> Any:  # Any: whatever the name stands for
    """Import what needs Ray at its first use: Ray takes seconds."""
    if name == "tune_searcher":
        from nas.search.ray_tune import tune_searcher

        return tune_searcher
    if name == "RayExecutor":
        from nas.search.ray_engine import RayExecutor

        return RayExecutor
    raise AttributeError(f"module 'nas.search' has no attribute {name!r}")
