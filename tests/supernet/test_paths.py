from collections import Counter

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


def test_paths_are_a_function_of_seed_and_step(tiny):
    first, other = schedule(), schedule(seed=1)
    assert step_paths(tiny, first, 17) == step_paths(tiny, schedule(), 17)
    assert step_paths(tiny, first, 17) != step_paths(tiny, other, 17)
    assert step_paths(tiny, first, 17) != step_paths(tiny, first, 18)
