"""The stages of the whole job and the folder they share; `whole.py` says them in order."""

from nas.pipeline.by_files import plan_winner, search_by_files, verify_by_files
from nas.pipeline.candidates import search
from nas.pipeline.choice import fit_kinds
from nas.pipeline.config import RunConfig, preset
from nas.pipeline.config import load as load_config
from nas.pipeline.device_study import study_device
from nas.pipeline.doctor import doctor
from nas.pipeline.prepare import plan_profile, profile, train
from nas.pipeline.prices import check_table, price
from nas.pipeline.prune import PruneConfig, prune
from nas.pipeline.rank import rank
from nas.pipeline.remote import verify_on
from nas.pipeline.report import report
from nas.pipeline.run import Run, config_of
from nas.pipeline.taylor import taylor
from nas.pipeline.whole import run_all
from nas.pipeline.winners import distill, export, verify_folder
from nas.pipeline.workers import work

__all__ = [
    "PruneConfig",
    "Run",
    "RunConfig",
    "check_table",
    "config_of",
    "distill",
    "doctor",
    "fit_kinds",
    "export",
    "load_config",
    "plan_profile",
    "plan_winner",
    "preset",
    "price",
    "profile",
    "prune",
    "rank",
    "report",
    "run_all",
    "search",
    "search_by_files",
    "study_device",
    "taylor",
    "train",
    "verify_by_files",
    "verify_folder",
    "verify_on",
    "work",
]
