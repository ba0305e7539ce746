"""The stages of the whole job and the folder they share; `whole.py` says them in order."""

from nas.pipeline.candidates import search
from nas.pipeline.choice import fit_kinds
from nas.pipeline.config import RunConfig, preset
from nas.pipeline.config import load as load_config
from nas.pipeline.device_study import study_device
from nas.pipeline.doctor import doctor
from nas.pipeline.prepare import plan_profile, profile, train
from nas.pipeline.prices import check_table, price
from nas.pipeline.report import report
from nas.pipeline.run import Run, config_of
from nas.pipeline.whole import run_all
from nas.pipeline.winners import distill, export, verify_folder

__all__ = [
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
    "preset",
    "price",
    "profile",
    "report",
    "run_all",
    "search",
    "study_device",
    "train",
    "verify_folder",
]
