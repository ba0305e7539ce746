from collections import Counter

import numpy as np

from nas.supernet import TrainConfig
from nas.supernet.choice import kind_genes
from nas.supernet.paths import fair_kinds, path_choice, step_paths
from nas.supernet.schedule import Schedule


def schedule(**changes: object) -> Schedule:
    config = TrainConfig(**{"steps": 40, "largest": 0.1, "sandwich": 0.25, **changes})  # type: ignore[arg-type]
    return Schedule.of(config, steps_per_epoch=1)


def test_each_kind_is_drawn_equally_often_at_each_place(tiny):
    drawn = [fair_kinds(tiny, seed=0, draw=draw) for draw in range(42)]
    for gene, options in kind_genes(tiny).items():
        for start in range(0, 42, len(options)):
            cycle = [kinds[gene] for kinds in drawn[start : start + len(options)]]
            assert Counter(cycle) == Counter(options)
    assert len({tuple(kinds.values()) for kinds in drawn}) > 10


def test_every_path_of_a_training_takes_its_own_turn(tiny):
    """No draw is used twice and none left out, whatever the phase."""
    for each in (1, 2):
        whole = schedule(paths_per_step=each)
        before = 0
        for step in range(40):
            assert whole.paths_before(step) == before
            before += len(step_paths(tiny, whole, step))


def test_a_step_runs_the_paths_of_its_phase(tiny):
    roles = [tuple(path.role for path in step_paths(tiny, schedule(), s)) for s in range(40)]
    assert roles[:4] == [("largest",)] * 4
    assert roles[4:30] == [("random",)] * 26
    assert roles[30:] == [("largest", "smallest", "random")] * 10
    several = step_paths(tiny, schedule(paths_per_step=3), 10)
    assert [path.role for path in several] == ["random"] * 3
    assert len({path.architecture.id for path in several}) == 3


def test_largest_and_smallest_are_so_in_every_number_and_fair_in_kinds(tiny):
    ends = {"largest": -1, "smallest": 0}
    for role, end in ends.items():
        kinds = set()
        for draw in range(20):
            choice = path_choice(tiny, role, seed=0, draw=draw)
            kinds.add(choice["s2.b0.kind"])
            for gene, options in tiny.genes().items():
                if not gene.endswith((".kind", ".by", ".tail")):
                    assert choice[gene] == options[end]
        assert kinds == {"mb4d", "cga", "mbconv"}


def test_random_paths_at_levels_reach_both_ends_and_uniform_ones_stay_in_the_middle(tiny):
    def macs(level: bool) -> np.ndarray:
        choices = [path_choice(tiny, "random", seed=0, draw=n, level=level) for n in range(120)]
        return np.sort(np.log(tiny.macs_pricer()(tiny.encode(choices))))

    ends = [path_choice(tiny, role, seed=0, draw=0) for role in ("smallest", "largest")]
    low, high = np.log(tiny.macs_pricer()(tiny.encode(ends)))
    shares = [(macs(level) - low) / (high - low) for level in (True, False)]
    at_ends = [float(((share < 0.2) | (share > 0.8)).mean()) for share in shares]
    assert at_ends[0] > 0.3 > 2 * at_ends[1]
    assert shares[0][0] < 0.08 and shares[0][-1] > 0.92


def test_levels_leave_kinds_fair_and_tails_uniform(tiny):
    drawn = [path_choice(tiny, "random", seed=2, draw=draw, level=True) for draw in range(60)]
    for gene, options in kind_genes(tiny).items():
        counts = Counter(choice[gene] for choice in drawn)
        assert max(counts.values()) - min(counts.values()) <= 1 and len(counts) == len(options)
    tails = Counter(choice["s2.tail"] for choice in drawn)
    assert min(tails.values()) > 18
    assert {gene for choice in drawn for gene in choice} == set(tiny.genes())


def test_paths_are_a_function_of_seed_and_step(tiny):
    first, other = schedule(), schedule(seed=1)
    assert step_paths(tiny, first, 17) == step_paths(tiny, schedule(), 17)
    assert step_paths(tiny, first, 17) != step_paths(tiny, other, 17)
    assert step_paths(tiny, first, 17) != step_paths(tiny, first, 18)
