"""Report: what one run found, as one HTML page with its pictures."""

from nas.report.content import (
    Candidate,
    Command,
    LossPoint,
    Prediction,
    PredictorError,
    ReportInput,
    pareto_front,
    prediction_errors,
)
from nas.report.device import write_device_report
from nas.report.page import write_check, write_report
from nas.report.rank import RankedNetwork, RankReport, write_rank
from nas.report.taylor import TaylorReport, write_taylor

__all__ = [
    "Candidate",
    "Command",
    "LossPoint",
    "Prediction",
    "PredictorError",
    "RankReport",
    "RankedNetwork",
    "ReportInput",
    "TaylorReport",
    "pareto_front",
    "prediction_errors",
    "write_check",
    "write_device_report",
    "write_rank",
    "write_report",
    "write_taylor",
]
