import pytest

from nas.latency.calibrate import draw
from nas.space import SearchSpace


@pytest.fixture
def tiny() -> SearchSpace:
    return SearchSpace.load("tiny").replace(num_classes=10)


def test_networks_are_drawn_once_each_over_all_levels_and_never_those_to_avoid(
    tiny: SearchSpace,
) -> None:
    fitted = [item.id for item in draw(tiny, 10, seed=0)]
    drawn = draw(tiny, 10, seed=0, avoid=fitted)
    assert len({*fitted, *(item.id for item in drawn)}) == 20
    macs = sorted(sum(block.macs for block in tiny.blocks(item)) for item in drawn)
    ends = [
        sum(block.macs for block in tiny.blocks(item)) for item in (tiny.smallest(), tiny.largest())
    ]
    assert macs[0] < ends[0] * (ends[1] / ends[0]) ** 0.25
    assert macs[-1] > ends[0] * (ends[1] / ends[0]) ** 0.75
    assert [item.id for item in draw(tiny, 10, seed=0)] == fitted
