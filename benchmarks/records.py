"""What keeping the record of a search costs, beside plain Optuna on the same database.

python benchmarks/records.py --folder DIR [--seconds 45] [--trials 10000]
python benchmarks/records.py --folder DIR --workers 2

Run the first command again until it says that it is done: each piece goes on with the database in
DIR. A trial has 30 genes of 4 options. "Ours" is Study.add under the owner's lease; "queued" is the
same for a candidate that went through the queue of workers (put, claim, finish, results, add);
"plain" is study.ask(), 30 suggest_categorical and study.tell() with Optuna's RandomSampler, in a
study of its own in the same file. At first the three take turns, then ours fills up to 10,000.
The second command is for a quiet machine: evaluations of one second of computing on one thread, by
one worker and by two.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from record import Figure, record

from nas.files import read_json, write_json
from nas.search import Crew, QueueExecutor, SearchOptions, run
from nas.study import Queue, Study, hold, quiet_optuna

GENES: dict[str, tuple[int, ...]] = {f"g{gene:02d}": (0, 1, 2, 3) for gene in range(30)}
TURNS = 200
LAST = 200  # rows at either end that are compared
ASKED_MS, ASKED_SHARE, ASKED_SLOWER, ASKED_SPEEDUP = 20.0, 1 / 3, 2.0, 1.7
EVALUATIONS = 24
WORKER = """
import sys, threading, time
from nas.search import work
from nas.study import Study
import numpy as np

def evaluate(choice):
    begun_s, matrix = time.thread_time(), np.ones((200, 200))
    while time.thread_time() - begun_s < 1.0:
        matrix = matrix @ matrix / 200
    return sum(choice.values()) / 90

stop = threading.Event()
threading.Thread(target=lambda: (sys.stdin.buffer.read(), stop.set()), daemon=True).start()
work(Study.load(sys.argv[2], storage=sys.argv[1]), evaluate, idle_s=30, stop=stop)
"""


def draw(rng: np.random.Generator) -> dict[str, int]:
    """Draw one choice."""
    return dict(zip(GENES, rng.integers(0, 4, len(GENES)).tolist(), strict=True))


def add(study: Study, choice: dict[str, int]) -> None:
    """Record one trial as the engine does."""
    costs = {"latency_ms": 1.0 + sum(choice.values()), "params": 1e6 + sum(choice.values())}
    attrs = {"architecture_id": "0" * 12, "architecture": {"schema": 1, "stages": [choice]}}
    study.add(choice, costs, accuracy=0.5, loss=0.7, evaluation_s=1.0, attrs=attrs)


def queued(study: Study, queue: Queue, choice: dict[str, int]) -> None:
    """Send one candidate through the queue, then record it."""
    key = queue.put(choice, {"rank_by": "loss", "timeout_s": None})
    claim = queue.claim()
    assert claim is not None and queue.finish(claim, {"accuracy": 0.5, "loss": 0.7})
    assert key in queue.results()
    add(study, choice)


def plain(study: Any) -> None:  # Any: Optuna's study
    """Record one trial as Optuna's users do."""
    trial = study.ask()
    for gene, options in GENES.items():
        trial.suggest_categorical(gene, options)
    trial.set_user_attr("latency_ms", 30.0)
    study.tell(trial, [0.5, 30.0])


def timed_ms(action: Any, *arguments: Any) -> float:
    """Return how long a call takes."""
    begun_s = time.perf_counter()
    action(*arguments)
    return 1e3 * (time.perf_counter() - begun_s)


def records(folder: Path, *, trials: int, seconds: float) -> None:
    """Go on with the measurement for so long; record when it is done."""
    import optuna

    storage, kept = f"sqlite:///{folder}/records.db", folder / "times.json"
    times: dict[str, list[float]] = {"ours": [], "queued": [], "plain": []}
    times = read_json(kept) if kept.is_file() else times
    study, other = (Study.resume(name, storage=storage) for name in ("ours", "queued"))
    for each in (study, other):
        metrics = ["latency_ms", "params"]
        each.declare({"genes": GENES, "metrics": metrics, "budgets": {"latency_ms": 100.0}})
    with quiet_optuna():
        theirs = optuna.create_study(
            study_name="plain", storage=storage, directions=["maximize", "minimize"],
            load_if_exists=True, sampler=optuna.samplers.RandomSampler(seed=0),
        )  # fmt: skip
    rng = np.random.default_rng(len(study.trials))
    end_s = time.monotonic() + seconds
    with hold(study), hold(other):
        queue = Queue(other.place)
        while len(times["ours"]) < trials and time.monotonic() < end_s:
            if len(times["plain"]) < TURNS:
                times["plain"].append(timed_ms(plain, theirs))
                times["queued"].append(timed_ms(queued, other, queue, draw(rng)))
            times["ours"].append(timed_ms(add, study, draw(rng)))
    write_json(kept, times)
    print(f"{len(times['ours'])} of {trials} trials")
    if len(times["ours"]) >= trials:
        tell(times)


def tell(times: dict[str, list[float]]) -> None:
    """Compare and record."""
    means = {name: float(np.mean(values[:TURNS])) for name, values in times.items()}
    first, last = (float(np.median(part)) for part in (times["ours"][:LAST], times["ours"][-LAST:]))
    share, slower = means["ours"] / means["plain"], last / first
    figures = [
        Figure(
            figure=f"ms a trial of 30 genes on SQLite, mean of {TURNS}",
            asked=f"<= {ASKED_MS:g}",
            measured=round(means["ours"], 2),
            holds=means["ours"] <= ASKED_MS,
        ),
        Figure(
            figure="share of plain Optuna's ask, suggest and tell, in turns on one database",
            asked="<= 1/3",
            measured=round(share, 3),
            holds=share <= ASKED_SHARE,
        ),
        Figure(
            figure=f"the last {LAST} of {len(times['ours'])} trials by the first {LAST}, medians",
            asked=f"<= {ASKED_SLOWER:g}",
            measured=round(slower, 2),
            holds=slower <= ASKED_SLOWER,
        ),
    ]
    notes = {
        "mean_ms": {name: round(value, 2) for name, value in means.items()},
        "median_ms": {n: round(float(np.median(v[:TURNS])), 2) for n, v in times.items()},
        "p90_ms": {n: round(float(np.quantile(v[:TURNS], 0.9)), 2) for n, v in times.items()},
        "median_ms_by_thousand": [
            round(float(np.median(times["ours"][start : start + 1000])), 2)
            for start in range(0, len(times["ours"]), 1000)
        ],
    }
    record("records", figures, notes=notes)


def speedup(folder: Path, workers: int) -> None:
    """Search with one worker and with several; evaluations are a second of computing."""
    seconds = {}
    script = folder / "worker.py"
    script.write_text(WORKER)
    for count in (1, workers):
        storage, name = f"sqlite:///{folder}/workers-{time.time_ns()}.db", f"workers-{count}"
        study = Study.create(name, storage=storage)
        log = folder / f"{name}.log"

        def start(storage: str = storage, name: str = name, log: Path = log) -> Any:
            with open(log, "ab") as stream:
                return subprocess.Popen(
                    [sys.executable, str(script), storage, name],
                    stdin=subprocess.PIPE,
                    stderr=stream,
                )

        executor = QueueExecutor(study, crew=Crew(count, start, log=log))
        begun: list[float] = []

        def note(done: int, total: int, text: str, begun: list[float] = begun) -> None:
            begun.append(time.monotonic())

        options = SearchOptions(
            sampler="random",
            batch=2 * workers,
            executor=executor,
            progress=note,
        )
        run(
            GENES,
            lambda choice: 0.0,
            lambda choices: {"latency_ms": [1.0 + sum(choice.values()) for choice in choices]},
            {},
            evaluations=EVALUATIONS,
            options=options,
            study=study,
        )
        executor.shutdown()
        warm = 2 * workers  # the first batch waits for the processes to start
        seconds[count] = (begun[-1] - begun[warm - 1]) / (EVALUATIONS - warm)
    gain = seconds[1] / seconds[workers]
    figure = Figure(
        figure=f"evaluations a second, {workers} workers by 1, each a second of computing",
        asked=f">= {ASKED_SPEEDUP:g} (two workers on two quiet cores)",
        measured=round(gain, 2),
        holds=gain >= ASKED_SPEEDUP,
    )
    notes = {"s_an_evaluation": {str(n): round(value, 3) for n, value in seconds.items()}}
    record("records-workers", [figure], notes=notes)


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=45.0)
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--workers", type=int)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.workers is None:
        records(options.folder, trials=options.trials, seconds=options.seconds)
    else:
        speedup(options.folder, options.workers)


if __name__ == "__main__":
    main()
