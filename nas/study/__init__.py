"""A study: every candidate one search evaluated, in a database that plain Optuna opens too."""

from nas.study.database import DEFAULT_STORAGE, quiet_optuna, storage_url
from nas.study.identity import SCHEMA
from nas.study.lease import LEASE_S, Lease, Owner, hold, owner_of
from nas.study.metrics import (
    LATENCY,
    describe_cost,
    find_metric,
    front_metrics,
    full_metric,
    is_latency,
    latency_metric,
    split_metric,
)
from nas.study.overview import overview
from nas.study.patience import mask_url
from nas.study.queries import StudySummary
from nas.study.queue import Claim, Queue
from nas.study.select import as_text, select
from nas.study.study import Study
from nas.study.trial import Choice, Genes, Measurement, Option, Trial, check_genes

__all__ = [
    "DEFAULT_STORAGE",
    "LATENCY",
    "LEASE_S",
    "SCHEMA",
    "Choice",
    "Claim",
    "Genes",
    "Lease",
    "Measurement",
    "Option",
    "Owner",
    "Queue",
    "Study",
    "StudySummary",
    "Trial",
    "as_text",
    "check_genes",
    "describe_cost",
    "find_metric",
    "front_metrics",
    "full_metric",
    "hold",
    "is_latency",
    "latency_metric",
    "mask_url",
    "owner_of",
    "overview",
    "quiet_optuna",
    "select",
    "split_metric",
    "storage_url",
]
