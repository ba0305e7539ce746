"""A runtime's own profile: which operations a network's time goes to.

Each runtime that can say so has one function here; it runs in a process of its own, because a
network that crashes must not end the caller. Profiles add some time to each operation, so they
tell shares and not latencies, and small operations look a little larger than they are.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from nas.errors import DeviceError
from nas.latency.bench import THREAD_VARIABLES
from nas.latency.openvino_import import import_openvino
from nas.target import Target

RUNS, WARM_UP_RUNS = 40, 5
TIMEOUT_S = 60.0


def op_times(path: Path, target: Target, *, timeout_s: float = TIMEOUT_S) -> dict[str, float]:
    """Return milliseconds of one inference by type of operation; {} where no profile can be had.

    Raises:
        DeviceError: the runtime failed, crashed or hung on this file.
    """
    if target.runtime not in PROFILERS or target.precision != "fp32":
        return {}  # the file is fp32: what a target of int8 makes of it is its own
    threads = dict.fromkeys(THREAD_VARIABLES, str(target.threads))
    words = [target.runtime, str(path), str(target.threads)]
    try:
        done = subprocess.run(
            [sys.executable, "-m", "nas.latency.op_times", *words],
            capture_output=True,
            text=True,
            errors="replace",
            env={**os.environ, **threads},
            timeout=timeout_s,
            check=False,
        )
        found = json.loads(done.stdout.strip().rpartition("\n")[2])
        return {str(name): float(value) for name, value in found.items()}
    except subprocess.TimeoutExpired as error:
        raise DeviceError(f"{path.name}: the profile took more than {timeout_s:.0f} s") from error
    except (ValueError, AttributeError, TypeError) as error:
        last = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        raise DeviceError(
            f"{path.name}: {target.runtime} gave no profile; its last words: {last}"
        ) from error


def typical_ms(samples_us: Mapping[Any, list[float]], types: Mapping[Any, str]) -> dict[str, float]:
    """Return ms by type, each node by the mean of the middle half of its samples.

    A median would do, but some runtimes count whole microseconds only.
    """
    totals: dict[str, float] = defaultdict(float)
    for node, values in samples_us.items():
        ordered = np.sort(values)
        quarter = len(ordered) // 4
        middle = ordered[quarter : len(ordered) - quarter]
        totals[types[node]] += float(middle.mean()) / 1000
    return dict(totals)


def read_ort_profile(events: list[dict[str, Any]]) -> dict[str, float]:
    """Return ms by type from the events of an ONNX Runtime profile, the warm-up runs left out."""
    samples: dict[str, list[float]] = defaultdict(list)
    types: dict[str, str] = {}
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") != "Node" or not name.endswith("_kernel_time"):
            continue
        samples[name].append(float(event["dur"]))
        types[name] = str(event["args"]["op_name"])
    later = {name: values[WARM_UP_RUNS:] for name, values in samples.items()}
    return typical_ms({name: values for name, values in later.items() if values}, types)


def _onnxruntime(path: str, threads: int) -> dict[str, float]:
    library: Any = import_module("onnxruntime")
    options = library.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = library.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        given = {item.name: _random(item.shape) for item in session.get_inputs()}
        for _ in range(WARM_UP_RUNS + RUNS):
            session.run(None, given)
        return read_ort_profile(json.loads(Path(session.end_profiling()).read_text()))


def _openvino(path: str, threads: int) -> dict[str, float]:
    library = import_openvino()
    settings: dict[str, Any] = {
        "PERF_COUNT": True,
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
    }
    settings["INFERENCE_PRECISION_HINT"] = "f32"
    request = library.Core().compile_model(path, "CPU", settings).create_infer_request()
    given = [_random(list(item.shape)) for item in request.model_inputs]
    samples: dict[str, list[float]] = defaultdict(list)
    types: dict[str, str] = {}
    for run in range(WARM_UP_RUNS + RUNS):
        request.infer(given)
        for node in request.profiling_info if run >= WARM_UP_RUNS else ():
            if "EXECUTED" in str(node.status) and "NOT" not in str(node.status):
                samples[node.node_name].append(node.real_time.total_seconds() * 1e6)
                types[node.node_name] = str(node.node_type)
    return typical_ms(samples, types)


def _random(shape: list[int]) -> Any:
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


PROFILERS: dict[str, Callable[[str, int], dict[str, float]]] = {
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
}


def main() -> None:
    """Profile the file named on the command line and write one line of JSON."""
    runtime, path, threads = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not look like the answer
    answers.write(json.dumps(PROFILERS[runtime](path, int(threads))) + "\n")
    answers.close()


if __name__ == "__main__":
    main()
