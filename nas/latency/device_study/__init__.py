"""What a target likes, measured on it: observations of two papers, and which widths pay.

Nothing here loads torch before something is exported.
"""

from nas.latency.device_study.answer import Hands
from nas.latency.device_study.observation import Comparison, Observation, OpShare, Row
from nas.latency.device_study.question import Pair, Question, Variant
from nas.latency.device_study.stairs import Step
from nas.latency.device_study.study import CONFIG, FILE, DeviceStudy, begin, run
from nas.latency.profile_config import ProfileConfig

__all__ = [
    "CONFIG",
    "FILE",
    "Comparison",
    "DeviceStudy",
    "Hands",
    "Observation",
    "OpShare",
    "Pair",
    "ProfileConfig",
    "Question",
    "Row",
    "Step",
    "Variant",
    "begin",
    "run",
]
