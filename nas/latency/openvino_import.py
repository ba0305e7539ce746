"""OpenVINO without its telemetry."""

import sys
from importlib import import_module
from typing import Any


def import_openvino() -> Any:  # Any: its stubs are not whole
    """Return the module `openvino`, imported so that it reports nothing.

    OpenVINO's wheel brings `openvino_telemetry`, which tells Google Analytics of every import, from
    a process forked off a thread of ours: nobody was asked, what is timed meanwhile is disturbed,
    and a fork beside other libraries' threads may hang. OpenVINO and NNCF do without that package
    where it is not installed, and are told so here. A program that has imported OpenVINO before
    keeps what it has.

    Raises:
        ImportError: OpenVINO is not installed.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    return import_module("openvino")
