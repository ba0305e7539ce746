"""Our default sampler after 100 evaluations against others after 400, on a space known whole.

python benchmarks/search.py [DIR] [--seconds N] [--seeds N]

The space is half of `tiny` with a supernet trained on digits (benchmarks/search_space.py):
benchmarks/assets/search_space.csv.gz has each architecture's cross-entropy on the search split
and its latency by a measured table. The score is 100 x exp(-cross-entropy), the likelihood of a
label in percent. Runs are kept in DIR, a seed a file: call it again until it says that nothing is
left. The others are used plainly: Optuna's samplers by ask and tell with constraints, pymoo's
NSGA-II on option numbers with its own repair. What they repeat or propose over budget is
evaluated too.
"""

import argparse
import csv
import gzip
import itertools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import optuna
from record import Figure, record
from search_samplers import PLAIN, hypervolume
from search_space import genes_of

from nas.files import write_json
from nas.search import SearchOptions
from nas.search import run as search
from nas.space import SearchSpace

ASSET = Path(__file__).parent / "assets" / "search_space.csv.gz"
OURS, THEIRS = 100, 400  # evaluations
POINTS = (50, 100, 200, 400)
SHARES = (0.2, 0.5, 0.8)  # of architectures that meet the budget; seeds take turns
FIRST_SEED = 2000
POPULATION = 40  # of pymoo's NSGA-II
Choice = Mapping[str, Any]
Values = npt.NDArray[np.float64]


class Known:
    """The whole space: what every choice costs and scores, inactive genes left out of account."""

    def __init__(self) -> None:
        self.space = SearchSpace.load("tiny")
        self.genes = genes_of(self.space)
        with gzip.open(ASSET, "rt", newline="") as stream:
            lines = list(csv.DictReader(stream))
        words = {gene: {str(option): option for option in self.genes[gene]} for gene in self.genes}
        place = {
            tuple(words[gene][line[gene]] for gene in self.genes): number
            for number, line in enumerate(lines)
        }
        self.latency_ms = np.array([float(line["latency_ms"]) for line in lines])
        self.accuracy = np.array([float(line["accuracy"]) for line in lines])
        self.score = 100 * np.exp(-np.array([float(line["loss"]) for line in lines]))
        self._place = {}
        for options in itertools.product(*self.genes.values()):
            whole = self.complete(dict(zip(self.genes, options, strict=True)))
            self._place[options] = place[tuple(whole.values())]

    def complete(self, choice: Choice, level: float | None = None) -> dict[str, Any]:
        """Return a choice with its inactive genes at options that count for nothing."""
        return dict(self.space.choice(self.space.architecture(choice)))

    def place(self, choice: Choice) -> int:
        """Return the row of a choice."""
        return self._place[tuple(choice[gene] for gene in self.genes)]

    def price(self, choices: Sequence[Choice]) -> dict[str, Values]:
        """Return what the engine asks of a price function."""
        return {"latency_ms": self.latency_ms[[self.place(choice) for choice in choices]]}


# ---------------------------------------------------------------- who searches
def ours(known: Known, mode: Any, budget_ms: float, seed: int) -> list[int]:
    """Return the rows evaluated, in order, checked: none infeasible, none twice."""
    study = search(
        known.genes,
        lambda choice: float(known.score[known.place(choice)]),
        known.price,
        {"latency_ms": budget_ms},
        evaluations=OURS,
        seed=seed,
        options=SearchOptions(mode=mode, complete=known.complete),
    )
    rows = [known.place(row.choice) for row in study.trials]
    assert len(set(rows)) == OURS, "one was evaluated twice"
    assert (known.latency_ms[rows] <= budget_ms).all(), "an infeasible one was evaluated"
    return rows


def plain(name: str) -> Callable[[Known, str, float, int], list[int]]:
    """Return a search by one of Optuna's samplers, used plainly."""

    def searched(known: Known, mode: str, budget_ms: float, seed: int) -> list[int]:
        directions: list[Any] = ["maximize", "minimize"] if mode == "front" else ["maximize"]
        study = optuna.create_study(sampler=PLAIN[name](seed=seed), directions=directions)
        rows = []
        for _ in range(THEIRS):
            trial = study.ask()
            row = known.place(
                {g: trial.suggest_categorical(g, options) for g, options in known.genes.items()}
            )
            trial.set_constraint("latency", known.latency_ms[row] / budget_ms - 1)
            values = [float(known.score[row]), float(known.latency_ms[row])]
            study.tell(trial, values[: len(directions)])
            rows.append(row)
        return rows

    return searched


def pymoo_nsga2(known: Known, mode: str, budget_ms: float, seed: int) -> list[int]:
    """Return the rows of pymoo's NSGA-II on both goals, whatever the mode."""
    from pymoo.algorithms.moo.nsga2 import NSGA2
    from pymoo.core.problem import ElementwiseProblem
    from pymoo.operators.crossover.sbx import SBX
    from pymoo.operators.mutation.pm import PM
    from pymoo.operators.repair.rounding import RoundingRepair
    from pymoo.operators.sampling.rnd import IntegerRandomSampling
    from pymoo.optimize import minimize

    rows: list[int] = []
    options = list(known.genes.values())

    class Problem(ElementwiseProblem):  # type: ignore[misc]  # pymoo has no types
        def __init__(self) -> None:
            most = np.array([len(one) - 1 for one in options])
            super().__init__(n_var=len(most), n_obj=2, n_ieq_constr=1, xl=0, xu=most, vtype=int)

        def _evaluate(self, x: Any, out: dict[str, Any], *args: Any, **named: Any) -> None:
            codes = [one[int(code)] for one, code in zip(options, x, strict=True)]
            row = known.place(dict(zip(known.genes, codes, strict=True)))
            rows.append(row)
            out["F"] = [-known.score[row], known.latency_ms[row]]
            out["G"] = [known.latency_ms[row] / budget_ms - 1]

    algorithm = NSGA2(
        pop_size=POPULATION,
        sampling=IntegerRandomSampling(),
        crossover=SBX(vtype=float, repair=RoundingRepair()),
        mutation=PM(vtype=float, repair=RoundingRepair()),
        eliminate_duplicates=True,
    )
    minimize(Problem(), algorithm, ("n_eval", THEIRS), seed=seed, verbose=False)
    return rows[:THEIRS]


SEARCHES: dict[str, Callable[[Known, str, float, int], list[int]]] = {
    "predictor": ours,
    **{name: plain(name) for name in PLAIN},
    "pymoo nsga2": pymoo_nsga2,
}


# ---------------------------------------------------------------- one seed
def measure(known: Known, seed: int) -> dict[str, Any]:
    """Return {sampler: regret and share of the whole hypervolume at POINTS} of one seed."""
    budget_ms = float(np.quantile(known.latency_ms, SHARES[seed % len(SHARES)]))
    met = known.latency_ms <= budget_ms
    ends = {"most": budget_ms, "least": float(np.quantile(known.score, 0.1))}
    whole = hypervolume(known.latency_ms[met], known.score[met], **ends)
    found: dict[str, Any] = {"budget_ms": budget_ms}
    off = 0.0
    for name, searched in SEARCHES.items():
        best_rows = searched(known, "best", budget_ms, seed)
        front_rows = searched(known, "front", budget_ms, seed)
        points = [count for count in POINTS if count <= len(best_rows)]
        regrets, shares = {}, {}
        for count in points:
            rows = np.array([row for row in best_rows[:count] if met[row]], dtype=np.int64)
            best = known.score[rows].max(initial=ends["least"])
            regrets[str(count)] = float(known.score[met].max() - best)
            rows = np.array([row for row in front_rows[:count] if met[row]], dtype=np.int64)
            area = hypervolume(known.latency_ms[rows], known.score[rows], **ends)
            off = max(off, abs(area - pymoo_area(known, rows, **ends)) / whole)
            shares[str(count)] = area / whole
        wasted = sum(not met[row] for row in best_rows) + len(best_rows) - len(set(best_rows))
        found[name] = {"regret": regrets, "share": shares, "wasted": wasted}
    found["off_pymoo"] = off
    return found


def pymoo_area(known: Known, rows: Any, *, most: float, least: float) -> float:
    """Return pymoo's own hypervolume of some rows."""
    from pymoo.indicators.hv import HV

    if len(rows) == 0:
        return 0.0
    points = np.stack([known.latency_ms[rows], -known.score[rows]], axis=1)
    return float(HV(ref_point=np.array([most, -least]))(points))


# ---------------------------------------------------------------- all of them
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", default="runs/benchmarks/search")
    parser.add_argument("--seconds", type=float, default=40.0, help="begin nothing after that long")
    parser.add_argument("--seeds", type=int, default=10)
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    until_s = time.perf_counter() + options.seconds
    known = Known()
    files = {
        seed: Path(options.folder) / f"{seed}.json"
        for seed in range(FIRST_SEED, FIRST_SEED + options.seeds)
    }
    for seed, file in files.items():
        if not file.exists():
            if time.perf_counter() > until_s:
                left = sum(not one.exists() for one in files.values())
                print(f"{left} of {len(files)} seeds are left: call it again")
                return
            write_json(file, measure(known, seed))
    summarise(known, [json.loads(file.read_text()) for file in files.values()])


def summarise(known: Known, runs: list[dict[str, Any]]) -> None:
    """Print and write the figures."""
    figures = []
    words = {"regret": "mean regret of the best within the budget, in points of the score"}
    words["share"] = "mean share of the space's hypervolume within the budget"
    for what, text in words.items():
        means = {
            name: {
                count: round(float(np.mean([run[name][what][count] for run in runs])), 4)
                for count in runs[0][name][what]
            }
            for name in SEARCHES
        }
        own = means["predictor"][str(OURS)]
        others = [means[name][str(THEIRS)] for name in SEARCHES if name != "predictor"]
        holds = own <= min(others) if what == "regret" else own >= max(others)
        asked = f"predictor after {OURS} at least as good as the others after {THEIRS}"
        figures.append(Figure(figure=text, asked=asked, measured=means, holds=bool(holds)))
    wasted = {
        name: round(float(np.mean([run[name]["wasted"] for run in runs])), 1) for name in SEARCHES
    }
    figures += [
        Figure(
            figure="infeasible or repeated evaluations in a search for the best, on average",
            asked="0 of predictor (asserted run by run)",
            measured=wasted,
            holds=wasted["predictor"] == 0,
        ),
        Figure(
            figure="largest difference to pymoo's hypervolume, as a share of the whole",
            asked="<= 1e-9",
            measured=max(run["off_pymoo"] for run in runs),
            holds=max(run["off_pymoo"] for run in runs) <= 1e-9,
        ),
    ]
    low, high = (f"{end:.2f}" for end in (known.score.min(), known.score.max()))
    notes = {
        "space": f"tiny, 32 channels in the first stage: {len(known.score)} architectures, "
        f"scores {low} to {high}, accuracies {known.accuracy.min():.1%} to "
        f"{known.accuracy.max():.1%}, latencies {known.latency_ms.min():.4f} to "
        f"{known.latency_ms.max():.4f} ms",
        "seeds": len(runs),
        "budgets": f"met by {SHARES} of the architectures, seeds taking turns",
    }
    record("search", figures, notes=notes)


if __name__ == "__main__":
    main()
