"""Allocation against brute force and an exact solver, and what it promises of every answer."""

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import Bounds, LinearConstraint, milp

from nas.errors import ConfigError, InfeasibleBudget
from nas.search.allocate import Allocation, Group, allocate

Budgets = Mapping[str, float]


def network(
    rng: np.random.Generator, *, groups: int, budgets: int, level: float, convex: bool = True
) -> tuple[list[Group], dict[str, float]]:
    """Return parts whose loss is minus the importance they keep, and budgets at a level of 0 to 1
    between the cheapest allocation and the dearest."""
    made = []
    for _ in range(groups):
        size = int(rng.integers(3, 9))
        steps = rng.exponential(1.0, size)
        kept = rng.lognormal() * np.cumsum(np.sort(steps)[::-1] if convex else steps)
        first = rng.lognormal() * np.cumsum(rng.uniform(0.2, 1.0, size))
        costs = [first, *(first * rng.lognormal(0, 0.3, size) for _ in range(budgets - 1))]
        named = {f"m{index}": values.tolist() for index, values in enumerate(costs)}
        made.append(Group(loss=(-kept).tolist(), costs=named))
    limits = {
        name: (1 - level) * sum(min(group.costs[name]) for group in made)
        + level * sum(max(group.costs[name]) for group in made)
        for name in made[0].costs
    }
    return made, limits


def optimum(groups: Sequence[Group], budgets: Budgets) -> float | None:
    """Return the least loss by an exact solver (HiGHS); None if nothing meets the budgets."""
    loss = np.concatenate([group.loss for group in groups])
    owner = np.repeat(np.arange(len(groups)), [len(group.loss) for group in groups])
    one_each = LinearConstraint((owner == np.arange(len(groups))[:, None]).astype(float), 1, 1)
    costs = [np.concatenate([group.costs[name] for group in groups]) for name in budgets]
    within = LinearConstraint(np.array(costs), -np.inf, list(budgets.values()))
    found = milp(
        loss,
        constraints=[one_each, within],
        integrality=np.ones(len(loss), dtype=np.int64),
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": 1e-6, "time_limit": 10.0},
    )
    return None if found.x is None else float(found.fun)


def by_hand(groups: Sequence[Group], budgets: Budgets) -> float | None:
    """Return the least loss of all allocations, tried one by one."""
    losses = [
        math.fsum(group.loss[option] for group, option in zip(groups, options, strict=True))
        for options in itertools.product(*(range(len(group.loss)) for group in groups))
        if all(
            math.fsum(g.costs[name][o] for g, o in zip(groups, options, strict=True)) <= limit
            for name, limit in budgets.items()
        )
    ]
    return min(losses, default=None)


def assert_meets(found: Allocation, groups: Sequence[Group], budgets: Budgets) -> None:
    """Assert what is promised of every answer."""
    assert len(found.choice) == len(groups)
    pairs = list(zip(groups, found.choice, strict=True))
    assert found.loss == math.fsum(group.loss[option] for group, option in pairs)
    for name, cost in found.costs.items():
        assert cost == math.fsum(group.costs[name][option] for group, option in pairs)
        assert cost <= budgets.get(name, math.inf)
    assert found.least_loss <= found.loss + 1e-9 * (1 + abs(found.loss))
    for index, group in enumerate(groups):  # no single change is still free
        mine = found.choice[index]
        for other in range(len(group.loss)):
            fits = all(
                found.costs[name] - group.costs[name][mine] + group.costs[name][other]
                < limit * (1 - 1e-9)
                for name, limit in budgets.items()
            )
            assert not fits or group.loss[other] >= group.loss[mine]


# ---------------------------------------------------------------- as good as exact solvers
@pytest.mark.parametrize("budgets", [1, 2, 3])
@pytest.mark.parametrize("convex", [True, False])
def test_a_network_keeps_999_of_1000_of_the_importance_an_exact_solver_keeps(
    budgets: int, convex: bool
) -> None:
    rng = np.random.default_rng([budgets, convex])
    for _ in range(4):
        groups, limits = network(
            rng,
            groups=int(rng.integers(10, 61)),
            budgets=budgets,
            level=rng.uniform(0.1, 0.8),
            convex=convex,
        )
        found = allocate(groups, limits)
        assert_meets(found, groups, limits)
        best = optimum(groups, limits)
        assert best is not None and found.loss <= 0.999 * best
        assert found.least_loss <= best + 1e-6 * abs(best)


SMALL = st.lists(
    st.lists(st.tuples(*[st.integers(0, 6)] * 3), min_size=1, max_size=4), min_size=1, max_size=5
)


@given(SMALL, st.integers(1, 14), st.integers(1, 14))
def test_small_ones_are_solved_exactly_or_refused_as_brute_force_says(
    options: list[list[tuple[int, int, int]]], first: int, second: int
) -> None:
    groups = [
        Group(
            loss=[-row[0] for row in rows],
            costs={"a": [row[1] for row in rows], "b": [row[2] for row in rows]},
        )
        for rows in options
    ]
    for budgets in ({"a": first}, {"a": first, "b": second}):
        best = by_hand(groups, budgets)
        if best is None:
            with pytest.raises(InfeasibleBudget):
                allocate(groups, budgets)
        else:
            found = allocate(groups, budgets)
            assert_meets(found, groups, budgets)
            assert found.loss == best


def test_a_budget_that_only_the_cheapest_meets_gives_the_cheapest() -> None:
    rng = np.random.default_rng(0)
    for count in (1, 2, 3):
        groups, _ = network(rng, groups=40, budgets=count, level=0.5)
        least = {
            name: math.fsum(min(group.costs[name]) for group in groups) for name in groups[0].costs
        }
        generous = dict.fromkeys(groups[0].costs, 1000000000.0)
        found = allocate(groups, {**generous, "m0": least["m0"]})
        assert found.costs["m0"] == least["m0"]
        assert_meets(found, groups, {"m0": least["m0"]})


@pytest.mark.parametrize("slack", [0.0, 0.02])
def test_budgets_that_leave_hardly_any_allocation_are_still_met(slack: float) -> None:
    rng = np.random.default_rng(5)
    for _ in range(6):
        groups, _ = network(rng, groups=int(rng.integers(10, 61)), budgets=3, level=0.5)
        groups = [  # cheap on one metric says nothing of the others
            Group(
                loss=group.loss,
                costs={k: rng.permutation(v).tolist() for k, v in group.costs.items()},
            )
            for group in groups
        ]
        spans = {
            name: sum(np.ptp(group.costs[name]) for group in groups) for name in ("m0", "m1", "m2")
        }
        weights = dict(zip(spans, rng.dirichlet(np.ones(3)), strict=True))
        known = [
            int(np.argmin(sum(weights[n] * np.array(group.costs[n]) / spans[n] for n in spans)))
            for group in groups
        ]
        limits = {
            name: (1 + slack)
            * math.fsum(g.costs[name][o] for g, o in zip(groups, known, strict=True))
            for name in spans
        }
        assert_meets(allocate(groups, limits), groups, limits)


def test_budgets_that_do_not_bind_give_every_group_its_best_option() -> None:
    groups, _ = network(np.random.default_rng(0), groups=30, budgets=3, level=0.5)
    found = allocate(groups, {"m0": 1e9, "m2": 1e9})
    assert found.loss == math.fsum(min(group.loss) for group in groups)
    assert found.least_loss == pytest.approx(found.loss)
    assert set(found.costs) == {"m0", "m1", "m2"}


def test_a_larger_budget_never_keeps_less() -> None:
    rng = np.random.default_rng(3)
    for count in (1, 2, 3):
        groups, limits = network(rng, groups=30, budgets=count, level=0.2)
        kept = [
            -allocate(groups, {name: scale * limit for name, limit in limits.items()}).loss
            for scale in np.linspace(1.0, 2.5, 16)
        ]
        # a heuristic may lose what it is within of the optimum, and no more
        assert all(later >= 0.999 * earlier for earlier, later in itertools.pairwise(kept))
        assert kept[-1] > 1.05 * kept[0]


def test_the_same_question_has_the_same_answer() -> None:
    groups, limits = network(np.random.default_rng(7), groups=25, budgets=3, level=0.3)
    assert allocate(groups, limits) == allocate(groups, limits)


def test_units_do_not_matter() -> None:
    groups, limits = network(np.random.default_rng(8), groups=25, budgets=2, level=0.4)
    scaled = [
        Group(
            loss=[1e-3 * loss for loss in group.loss],
            costs={"m0": [1e6 * cost for cost in group.costs["m0"]], "m1": group.costs["m1"]},
        )
        for group in groups
    ]
    found = allocate(scaled, {"m0": 1e6 * limits["m0"], "m1": limits["m1"]})
    assert found.loss == pytest.approx(1e-3 * allocate(groups, limits).loss, rel=1e-3)


# ---------------------------------------------------------------- refusals
TWO = [Group(loss=[1.0, 0.0], costs={"latency_ms:cpu": [1.0, 2.0], "params": [10, 30]})] * 2


def test_an_impossible_budget_is_named_with_the_least_there_is() -> None:
    with pytest.raises(
        InfeasibleBudget, match=r"latency_ms:cpu <= 1.5 ms: the least .* is 2 ms"
    ) as caught:
        allocate(TWO, {"latency_ms": 1.5, "params": 100})
    error = caught.value
    assert (error.metric, error.budget, error.smallest) == ("latency_ms:cpu", 1.5, 2.0)


def test_budgets_that_only_exclude_each_other_are_refused_together() -> None:
    group = Group(loss=[0.0, 0.0], costs={"a": [1.0, 3.0], "b": [3.0, 1.0]})
    with pytest.raises(InfeasibleBudget, match="with the other budgets the least found is"):
        allocate([group, group], {"a": 3.0, "b": 3.0})
    assert allocate([group, group], {"a": 4.0, "b": 4.0}).costs == {"a": 4.0, "b": 4.0}


def test_where_losses_are_all_equal_the_budgets_still_decide() -> None:
    groups = [Group(loss=[0.0, 0.0], costs={"a": [2.0, 1.0], "b": [1.0, 2.0]})] * 60
    found = allocate(groups, {"a": 60.0})
    assert found.choice == (1,) * 60
    both = allocate(groups, {"a": 90.0, "b": 90.0}).costs
    assert both == {"a": 90.0, "b": 90.0}


def test_groups_without_a_choice_are_added_up() -> None:
    fixed = Group(loss=[0.5], costs={"a": [1.0]})
    assert allocate([fixed, fixed], {"a": 2.0}).choice == (0, 0)
    with pytest.raises(InfeasibleBudget, match="is 2"):
        allocate([fixed, fixed], {"a": 1.0})


@pytest.mark.parametrize(
    ("groups", "budgets", "message"),
    [
        ([], {"a": 1.0}, "at least one group"),
        (TWO, {}, "1 to 3 budgets, but 0"),
        (TWO, {"macs": 1.0}, "macs is no known metric"),
        (TWO, {"params": 0.0}, "above zero"),
        (TWO, {"params": math.nan}, "above zero"),
        ([Group(loss=[], costs={"a": []})], {"a": 1.0}, "lists of"),
        ([Group(loss=[1.0], costs={"a": [1.0, 2.0]})], {"a": 1.0}, "lists of"),
        ([*TWO, Group(loss=[1.0], costs={"params": [1.0]})], {"params": 9.0}, "but group 2 has"),
        ([Group(loss=[math.nan], costs={"a": [1.0]})], {"a": 1.0}, "losses are finite"),
        ([Group(loss=[1.0], costs={"a": [-1.0]})], {"a": 1.0}, "costs at least 0"),
        ([Group(loss=[1.0], costs={"a": [math.inf]})], {"a": 1.0}, "losses are finite"),
        (
            [Group(loss=[1.0], costs=dict.fromkeys("abcd", [1.0]))],
            dict.fromkeys("abcd", 2.0),
            "1 to 3 budgets, but 4",
        ),
    ],
)
def test_what_is_no_table_of_options_is_refused(
    groups: list[Group], budgets: dict[str, float], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        allocate(groups, budgets)
