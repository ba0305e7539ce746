"""The sample of `nas rank`: as many networks from each band of MACs, the same ones every time."""

import numpy as np
import pytest

from nas.errors import ConfigError
from nas.pipeline.sample import RankConfig, draw, repeated
from nas.space import SearchSpace


@pytest.mark.parametrize("name", ["tiny", "hybrid-64"])
def test_every_band_has_as_many_different_networks_of_its_size(name: str) -> None:
    space = SearchSpace.load(name)
    config = RankConfig(bands=8, per_band=4) if name == "hybrid-64" else RankConfig()
    sample = draw(space, config, seed=1)
    assert len({drawn.architecture.id for drawn in sample}) == config.networks
    assert [drawn.band for drawn in sample] == sorted(list(range(config.bands)) * config.per_band)
    ends = [sum(b.macs for b in space.blocks(a)) for a in (space.smallest(), space.largest())]
    edges = np.geomspace(ends[0], ends[1], config.bands + 1)
    for drawn in sample:
        assert drawn.macs == sum(block.macs for block in space.blocks(drawn.architecture))
        assert edges[drawn.band] * 0.999 <= drawn.macs <= edges[drawn.band + 1] * 1.001
    assert sample == draw(space, config, seed=1) != draw(space, config, seed=2)


def test_no_network_is_larger_than_asked_for() -> None:
    space = SearchSpace.load("hybrid-64")
    sample = draw(space, RankConfig(bands=8, per_band=4, max_macs=15_000_000), seed=0)
    assert 10_000_000 < max(drawn.macs for drawn in sample) <= 15_000_000


def test_a_space_too_small_for_the_sample_is_said() -> None:
    tiny = SearchSpace.load("tiny")
    with pytest.raises(ConfigError, match=r"band \d+ of 3000 .* gave 0\. Ask for fewer bands"):
        draw(tiny, RankConfig(bands=3000, per_band=1), seed=0)
    with pytest.raises(ConfigError, match="max_macs must be above"):
        draw(tiny, RankConfig(max_macs=10), seed=0)


def test_those_trained_twice_are_spread_over_all() -> None:
    assert repeated(32, 8)[0] == 0 and repeated(32, 8)[-1] == 31 and len(repeated(32, 8)) == 8
    assert repeated(5, 0) == () and repeated(5, 5) == (0, 1, 2, 3, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bands": 1, "per_band": 2}, "at least 3 networks"),
        ({"twice": 17}, "twice must be 0 to the 16"),
        ({"resamples": 0}, "resamples must be 1"),
    ],
)
def test_impossible_samples_are_refused(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RankConfig(**changes)  # type: ignore[arg-type]
