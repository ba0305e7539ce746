"""How much importance `nas.search.allocate` keeps beside an exact solver, and how long it takes.

python benchmarks/allocation.py [--instances 200] [--seed 0]

An instance is a network of 10 to 60 groups of 3 to 8 options and 1 to 3 budgets, at a level of 10
to 80 % between the cheapest and the dearest network. Importance kept grows with an option's costs:
in falling steps ("convex", as sorted prefix sums do) or in any steps ("bumpy"). The costs of a
second and third budget are the first one's with noise ("correlated") or have nothing to do with it.
"Kept" is the sum of the importance of the options taken, which scipy.optimize.milp (HiGHS)
maximises; losses are its negative, so the ratio is of what is kept and not of what is lost.
"""

import argparse
import time
from dataclasses import dataclass

import numpy as np
from record import Figure, record
from scipy.optimize import Bounds, LinearConstraint, milp

from nas.search import Group, allocate

ASKED_SHARE = 0.999
ASKED_MS = 5.0
REPEATS = 5
LARGE = {"groups": 60, "options": 8}
KINDS = [
    (convex, correlated)
    for convex in ("convex", "bumpy")
    for correlated in ("correlated", "independent")
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """One network: its groups, its budgets, and what kind it is."""

    groups: list[Group]
    budgets: dict[str, float]
    kind: tuple[str, str]


def draw(
    rng: np.random.Generator, index: int, *, groups: int | None = None, options: int | None = None
) -> Instance:
    """Draw one instance; kinds and numbers of budgets take turns."""
    num_budgets, kind = 1 + index % 3, KINDS[index // 3 % len(KINDS)]
    made = []
    for _ in range(groups or int(rng.integers(10, 61))):
        size = options or int(rng.integers(3, 9))
        steps = rng.exponential(1.0, size)
        kept = rng.lognormal() * np.cumsum(np.sort(steps)[::-1] if kind[0] == "convex" else steps)
        costs = [rng.lognormal(0, 0.5) * np.cumsum(rng.uniform(0.2, 1.0, size))]
        for _ in range(num_budgets - 1):
            own = rng.lognormal(0, 0.5) * np.cumsum(rng.uniform(0.2, 1.0, size))
            is_alike = kind[1] == "correlated"
            costs.append(costs[0] * rng.lognormal(0, 0.15, size) if is_alike else own)
        named = {f"cost{number}": values.tolist() for number, values in enumerate(costs)}
        made.append(Group(loss=(-kept).tolist(), costs=named))
    level = rng.uniform(0.1, 0.8)
    budgets = {
        name: (1 - level) * sum(min(group.costs[name]) for group in made)
        + level * sum(max(group.costs[name]) for group in made)
        for name in made[0].costs
    }
    return Instance(groups=made, budgets=budgets, kind=kind)


def solve(instance: Instance) -> tuple[float, float]:
    """Return the importance an exact solver keeps, and an upper bound of what can be kept."""
    groups = instance.groups
    loss = np.concatenate([group.loss for group in groups])
    owner = np.repeat(np.arange(len(groups)), [len(group.loss) for group in groups])
    shares = [
        np.concatenate([group.costs[name] for group in groups]) / limit
        for name, limit in instance.budgets.items()
    ]
    found = milp(
        loss,
        constraints=[
            LinearConstraint((owner == np.arange(len(groups))[:, None]).astype(float), 1, 1),
            LinearConstraint(np.array(shares), -np.inf, 1),
        ],
        integrality=np.ones(len(loss), dtype=np.int64),
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": 1e-6, "time_limit": 20.0},
    )
    assert found.x is not None and found.mip_dual_bound is not None, "the budgets can be met"
    return -float(found.fun), -float(found.mip_dual_bound)


def measure_ms(instance: Instance) -> float:
    """Return the median time of one allocation."""
    times = []
    for _ in range(REPEATS):
        begun = time.perf_counter()
        allocate(instance.groups, instance.budgets)
        times.append(time.perf_counter() - begun)
    return 1e3 * float(np.median(times))


def main() -> None:
    """Solve every instance both ways, time large ones, record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--instances", type=int, default=200)
    parser.add_argument("--large", type=int, default=48)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    rows, over, all_ms, exact_ms = [], 0, [], []
    for index in range(options.instances):
        instance = draw(rng, index)
        found = allocate(instance.groups, instance.budgets)
        over += any(found.costs[name] > limit for name, limit in instance.budgets.items())
        begun = time.perf_counter()
        exact, bound = solve(instance)
        exact_ms.append(1e3 * (time.perf_counter() - begun))
        all_ms.append(measure_ms(instance))
        rows.append((len(instance.budgets), -found.loss / exact, -found.loss / bound))
    figures = []
    for count in (1, 2, 3):
        shares = [share for number, share, _ in rows if number == count]
        figures.append(
            Figure(
                figure=f"kept / milp's, least of {len(shares)} networks, number of budgets {count}",
                asked=f">= {ASKED_SHARE}",
                measured=round(min(shares), 5),
                holds=min(shares) >= ASKED_SHARE,
            )
        )
    figures.append(Figure(figure="over budget", asked="0", measured=over, holds=over == 0))
    large = [measure_ms(draw(rng, index, **LARGE)) for index in range(options.large)]
    figures.append(
        Figure(
            figure=f"ms a candidate, {LARGE['groups']} groups of {LARGE['options']} options, "
            f"1 to 3 budgets, median of {len(large)}",
            asked=f"<= {ASKED_MS:g}",
            measured=round(float(np.median(large)), 2),
            holds=float(np.median(large)) <= ASKED_MS,
        )
    )
    notes = {
        "large_ms_p90_and_max": [round(float(np.quantile(large, q)), 2) for q in (0.9, 1.0)],
        "large_share_within_5_ms": round(float(np.mean(np.array(large) <= ASKED_MS)), 3),
        "large_ms_median_by_budgets": [
            round(float(np.median(large[first::3])), 2) for first in range(3)
        ],
        "all_ms_median_and_max": [round(float(np.quantile(all_ms, q)), 2) for q in (0.5, 1.0)],
        "milp_ms_median_and_max": [round(float(np.quantile(exact_ms, q)), 1) for q in (0.5, 1.0)],
        "kept_by_upper_bound_least": round(min(share for _, _, share in rows), 5),
        "kept_median": round(float(np.median([share for _, share, _ in rows])), 6),
    }
    record("allocation", figures, notes=notes)


if __name__ == "__main__":
    main()
