"""Seeds of stages."""

import pytest

from nas.seeds import stage_seed


def test_a_stage_seed_never_changes_between_versions_and_machines() -> None:
    assert stage_seed(0, "supernet") == 0xF0A274E7
    assert stage_seed(1, "search") == 0x656BFE8A


def test_stages_and_seeds_do_not_share_streams() -> None:
    seeds = {stage_seed(seed, stage) for seed in range(100) for stage in ("search", "supernet")}
    assert len(seeds) == 200


@pytest.mark.parametrize("seed", [0, 7, 2**63, -1])
def test_a_stage_seed_is_taken_by_every_generator(seed: int) -> None:
    assert 0 <= stage_seed(seed, "x") < 2**32
