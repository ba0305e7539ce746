import pytest

from nas.errors import ConfigError, CorruptFile
from nas.space.loss_table import LossTable
from nas.supernet import SuperNet, score
from nas.supernet.taylor import (
    LossConfig,
    TaylorConfig,
    allocated,
    covering_paths,
    measure_importance,
    measure_losses,
)
from nas.supernet.taylor.losses import known_numbers, lost_by_kind, sum_up


@pytest.fixture(scope="module")
def supernet(tiny):
    return SuperNet(tiny, seed=1)


def test_every_number_that_stands_anywhere_is_known_and_more_channels_keep_more(
    supernet, tiny, quarters
):
    importance = measure_importance(
        supernet, covering_paths(tiny), quarters, TaylorConfig(images=8)
    )
    table = LossTable(space=tiny.name, method="taylor", dims=sum_up(tiny, importance))
    assert table.dims.keys() == known_numbers(tiny).keys()
    for dim in table.dims.values():
        for kept in dim.kept.values():
            values = [kept[str(number)] for number in sorted(map(int, kept))]
            assert values == sorted(values) and values[0] >= 0
    for level in (0.0, 0.5, 1.0):
        import numpy as np

        path = tiny.sample(np.random.default_rng(2), level)
        assert all(lost >= 0 for lost in lost_by_kind(tiny, path, table).values())


def test_a_table_has_scales_is_kept_as_json_and_says_what_it_does_not_know(
    supernet, tiny, quarters, tmp_path
):
    config = LossConfig(images=16, networks=2, numbers=5)
    table = measure_losses(supernet, quarters, config, digest="abc")
    assert table.scales and all(scale >= 0 for scale in table.scales.values())
    assert table.fit["networks"] == 10 and table.supernet == "abc"
    assert LossTable.load(table.save(tmp_path / "t.json")) == table
    with pytest.raises(ConfigError, match=r"does not know s1\.b0\.mb4d\.hidden at 7"):
        table.lost("s1.b0.mb4d.hidden", 7, most=64)
    (tmp_path / "t.json").write_text('{"schema": 9}')
    with pytest.raises(CorruptFile):
        LossTable.load(tmp_path / "t.json")
    with pytest.raises(ConfigError, match="method must be one of taylor, sensitivity"):
        LossConfig(method="guess")


@pytest.mark.slow
def test_sensitivity_is_the_loss_that_was_measured(supernet, tiny, quarters):
    table = measure_losses(supernet, quarters, LossConfig(method="sensitivity"))
    path = covering_paths(tiny)[0]
    whole = score(supernet, path, quarters, split="choice").loss
    smaller = allocated(tiny, path, {"s1.b0.mb4d.hidden": 64})
    increase = score(supernet, smaller, quarters, split="choice").loss - whole
    assert table.lost("s1.b0.mb4d.hidden", 64, most=128) == pytest.approx(increase)
    assert table.dims.keys() == known_numbers(tiny).keys()
