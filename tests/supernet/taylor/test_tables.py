import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from nas.errors import ConfigError
from nas.space import Architecture, SearchSpace
from nas.supernet import SuperNet, score
from nas.supernet.taylor import (
    Importance,
    InnerDim,
    TaylorConfig,
    allocated,
    covering_paths,
    fit_scales,
    inner_dims,
    measure_importance,
    unit_gates,
    widest,
)


@pytest.fixture(scope="module")
def kinds() -> SearchSpace:
    """A shipped space with many inner options, in small pictures and few places."""
    return SearchSpace.load("hybrid-64").replace(image_size=32, num_classes=4)


def random_importance(
    space: SearchSpace, path: Architecture, rng: np.random.Generator
) -> Importance:
    gates = unit_gates(SuperNet(space), path, torch.zeros(1, 3, 8, 8))
    return {name: rng.random(tuple(own.shape[1:])) for name, own in gates.items()}


def test_groups_list_what_a_space_offers_and_sum_what_is_dropped(kinds):
    rng = np.random.default_rng(0)
    checked = set()
    for path in covering_paths(kinds):
        importance = random_importance(kinds, path, rng)
        for group in inner_dims(kinds, path, importance):
            values = importance[group.name]
            checked.add(group.kind)
            assert list(group.options) == sorted(set(group.options)) and len(group.options) > 1
            for option, lost, kept in zip(group.options, group.lost, group.kept, strict=True):
                dropped = values[..., option : group.options[-1]]
                assert lost == pytest.approx(dropped.sum(), abs=1e-12)
                assert kept == pytest.approx(values[..., :option].sum())
            assert group.lost[-1] == 0 and (np.diff(group.lost) < 0).all()
    assert checked == {
        *("mlp.hidden", "ffn.hidden", "token_mlp.hidden", "attn.key", "attn.value"),
        *("group_attn.key", "merge.hidden", "merge.squeeze", "mbconv.hidden"),
    }


def test_a_path_has_the_options_of_its_width(kinds):
    narrow = kinds.sample(np.random.default_rng(3), level=0.3)
    largest = random_importance(kinds, covering_paths(kinds)[0], np.random.default_rng(0))
    path = widest(kinds, narrow)
    importance = random_importance(kinds, path, np.random.default_rng(0))
    for group in inner_dims(kinds, path, importance):
        assert importance[group.name].shape[-1] == group.options[-1]
    known = {name: values for name, values in largest.items() if name in importance}
    if known.keys() == importance.keys():  # importance of a larger network will do
        assert len(inner_dims(kinds, path, known)) == len(inner_dims(kinds, path, importance))


def test_an_allocation_is_a_network_that_a_supernet_runs(tiny, quarters):
    supernet = SuperNet(tiny)
    path = widest(tiny, covering_paths(tiny)[1])
    importance = measure_importance(supernet, [path], quarters, TaylorConfig(images=8))
    found = inner_dims(tiny, path, importance)
    rng = np.random.default_rng(0)
    allocation = {group.name: int(rng.choice(group.options)) for group in found}
    architecture = allocated(tiny, path, allocation)
    again = inner_dims(tiny, architecture, importance)
    assert [group.name for group in again] == [group.name for group in found]
    assert len(set(allocation.values())) >= 2
    blocks = dict(zip(tiny.slots(architecture), tiny.blocks(architecture), strict=True))
    for name, number in allocation.items():
        slot = next(slot for slot in blocks if name.startswith(slot + "."))
        field, _, place = name.removeprefix(slot + ".").partition(".")
        value = getattr(blocks[slot], field)
        assert (value[int(place)] if place else value) == number
    assert np.isfinite(score(supernet, architecture, quarters).loss)
    assert widest(tiny, architecture) == path
    assert allocated(tiny, path, {}) == path


def test_dimensions_that_are_not_there_are_named(tiny):
    path = covering_paths(tiny)[0]
    with pytest.raises(ConfigError, match=r"s7\.b0\.mb4d\.hidden is none"):
        allocated(tiny, path, {"s7.b0.mb4d.hidden": 8})
    with pytest.raises(ConfigError, match=r"s1\.b0\.mb4d\.hidden, but knows nothing"):
        inner_dims(tiny, path, {})
    with pytest.raises(ConfigError, match="knows 16 channels. Measure it on widest"):
        inner_dims(tiny, path, {"s1.b0.mb4d.hidden": np.ones(16)})


# ---------------------------------------------------------------- scales
def example(rng: np.random.Generator) -> tuple[list[InnerDim], list[dict[str, int]]]:
    found = []
    for place, kind in itertools.product(range(4), ("ffn.hidden", "group_attn.key", "mlp.hidden")):
        lost = np.sort(rng.random(3))[::-1] * [1, 1, 0]
        found.append(
            InnerDim(
                name=f"b{place}.{kind}", kind=kind, options=(8, 16, 32), lost=lost, kept=1 - lost
            )
        )
    allocations = [{g.name: int(rng.choice(g.options)) for g in found} for _ in range(60)]
    return found, allocations


def test_scales_are_found_again_and_predict_what_was_measured():
    rng = np.random.default_rng(0)
    found, allocations = example(rng)
    truth = {"ffn.hidden": 2.0, "group_attn.key": 0.05, "mlp.hidden": 0.0}

    def increase(allocation: dict[str, int]) -> float:
        return sum(truth[group.kind] * group.at(allocation[group.name]) for group in found)

    increases = [increase(own) for own in allocations]
    scales = fit_scales(found, allocations, increases, pull=0)
    assert dict(scales.by_kind) == pytest.approx(truth, abs=1e-9)
    assert scales.r2 == pytest.approx(1) and scales.spearman == pytest.approx(1)
    fresh = {group.name: 8 for group in found}
    assert scales.predict(found, fresh) == pytest.approx(increase(fresh))
    assert scales.costs(found[0]).tolist() == pytest.approx((2 * found[0].lost).tolist())


def test_noise_is_told_from_what_is_explained():
    rng = np.random.default_rng(1)
    found, allocations = example(rng)
    scales = fit_scales(found, allocations, rng.normal(1, 0.1, 60).tolist())
    assert scales.r2 < 0.2 and abs(scales.spearman) < 0.5
    assert scales.r2 < scales.r2_fitted


def test_losses_that_nothing_raises_correlate_with_nothing():
    found, allocations = example(np.random.default_rng(3))
    scales = fit_scales(found, allocations, [-1.0] * 60)
    assert scales.spearman == 0.0 and not any(scales.by_kind.values())


def test_a_kind_that_cannot_be_told_from_noise_gets_about_the_common_scale():
    rng = np.random.default_rng(2)
    found, allocations = example(rng)
    faint = [
        replace(g, lost=g.lost * 1e-3, kept=g.kept * 1e-3) if g.kind == "mlp.hidden" else g
        for g in found
    ]
    increases = [
        sum(3 * g.at(own[g.name]) for g in faint) + rng.normal(0, 0.3) for own in allocations
    ]
    alone = fit_scales(faint, allocations, increases, pull=0).by_kind["mlp.hidden"]
    pulled = fit_scales(faint, allocations, increases).by_kind
    assert abs(pulled["mlp.hidden"] - 3) < abs(alone - 3) / 1.5
    assert pulled["ffn.hidden"] == pytest.approx(3, rel=0.1)


def test_a_fit_on_too_little_or_on_nonsense_is_refused():
    found, allocations = example(np.random.default_rng(0))
    with pytest.raises(ConfigError, match="at least 10 allocations"):
        fit_scales(found, allocations[:9], [0.0] * 9)
    with pytest.raises(ConfigError, match="got 60 and 59"):
        fit_scales(found, allocations, [0.0] * 59)
    with pytest.raises(ConfigError, match="NaN or infinite"):
        fit_scales(found, allocations, [float("nan")] * 60)
    wrong = [{**own, "b0.mlp.hidden": 9} for own in allocations]
    with pytest.raises(ConfigError, match=r"b0\.mlp\.hidden must be one of 8, 16, 32.*gives 9"):
        fit_scales(found, wrong, [0.0] * 60)
