"""The search engine: any table of genes, accuracies and costs, under hard budgets."""

from nas.search.allocate import Allocation, Group, allocate
from nas.search.budgets import parse_budget, parse_budgets, parse_latency
from nas.search.crew import Crew
from nas.search.options import Mode, RankBy, SearchOptions
from nas.search.queued import QueueExecutor
from nas.search.run import run
from nas.search.samplers import SAMPLERS, Mind, Problem, Proposal
from nas.search.worker import work

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
    "SearchOptions",
    "allocate",
    "parse_budget",
    "parse_budgets",
    "parse_latency",
    "run",
    "work",
]
