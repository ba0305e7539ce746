"""Latency of parts and networks, measured: targets are timed into tables, tables price networks.

Nothing here loads torch or a runtime before something is exported or timed.
"""

from nas.latency.check import Check, check, compare, time_networks
from nas.latency.measure import measure_networks
from nas.latency.plan import Plan, plan
from nas.latency.profile import profile
from nas.latency.profile_config import QUICK, ProfileConfig
from nas.latency.table import LatencyTable, find_table
from nas.latency.timing import Timing

__all__ = [
    "QUICK",
    "Check",
    "LatencyTable",
    "Plan",
    "ProfileConfig",
    "Timing",
    "check",
    "compare",
    "find_table",
    "measure_networks",
    "plan",
    "profile",
    "time_networks",
]
