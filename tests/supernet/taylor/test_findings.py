"""What importance says: shares, what can go, EfficientViT's findings, how alike heads are."""

from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from nas.errors import ConfigError
from nas.supernet import SuperNet, fit_statistics
from nas.supernet.taylor import (
    TaylorConfig,
    covering_paths,
    gated_losses,
    measure_importance,
    order,
    sample_gradients,
    unit_gates,
)
from nas.supernet.taylor.findings import findings, kinds_of, removable, shares
from nas.supernet.taylor.heads import by_head, head_outputs, head_similarities, most_alike

CONFIG = TaylorConfig(images=16, batch_size=8, fixed=True)


@pytest.fixture(scope="module")
def supernet(small):
    return SuperNet(small, seed=1)


@pytest.fixture(scope="module")
def importance(supernet, quarters):
    return measure_importance(supernet, covering_paths(supernet.space), quarters, CONFIG)


# ---------------------------------------------------------------- values of cga
def test_the_derivatives_of_cgas_values_are_central_differences(supernet, quarters):
    """Through the projection and through the next head, which is fed what this one gives."""
    space = supernet.space
    path = next(p for p in covering_paths(space) if "s2.b0.cga" in space.slots(p))
    images = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(3)
    doubles = SuperNet(space, seed=1).double()
    statistics = tuple(
        {name: v.double() if v.is_floating_point() else v for name, v in block.items()}
        for block in fit_statistics(supernet, path, quarters)
    )
    found = sample_gradients(doubles, images.double(), labels, path, statistics, fixed=True)
    name = "s2.b0.cga.value"
    gates = unit_gates(doubles, path, images.double(), fixed=True)
    assert found[name].shape == gates[name].shape == (3, 3, 16)
    for head, channel in product(range(3), (0, 7)):
        losses = []
        for step in (1e-4, -1e-4):
            changed = gates[name].clone()
            changed[:, head, channel] += step
            with torch.no_grad():
                moved = {name: changed}
                losses.append(
                    gated_losses(doubles, images.double(), labels, path, statistics, moved)
                )
        difference = (losses[0] - losses[1]) / 2e-4
        torch.testing.assert_close(found[name][:, head, channel], difference, rtol=1e-3, atol=1e-8)


def test_what_has_to_stay_in_its_place_is_measured_only_when_asked(supernet, quarters, importance):
    plain = measure_importance(
        supernet, covering_paths(supernet.space), quarters, TaylorConfig(images=16, batch_size=8)
    )
    extra = importance.keys() - plain.keys()
    assert extra and all(name.endswith("cga.value") for name in extra)
    for name, own in plain.items():
        np.testing.assert_allclose(own, importance[name], rtol=1e-4, atol=1e-12)
    with pytest.raises(ConfigError, match="value"):
        order(SuperNet(supernet.space, seed=1), importance)


# ---------------------------------------------------------------- shares
def test_shares_add_up_and_every_dimension_is_counted_once(supernet, importance):
    kinds = kinds_of(supernet)
    assert importance.keys() <= kinds.keys()
    found = shares(importance, kinds)
    assert sum(share.importance for share in found) == pytest.approx(1)
    channels = sum(own.size for name, own in importance.items() if kinds[name] != "attn.heads")
    assert sum(share.channels for share in found) == channels
    assert found[0].stage == "stem" and all(0 <= share.removable <= 1 for share in found)


def test_what_can_go_is_counted_from_the_least_important_channel():
    assert removable(np.array([1.0, 0.004, 0.004, 0.004])) == 2
    assert removable(np.array([[0.0, 1.0], [0.0, 1.0]])) == 2
    assert removable(np.ones(99)) == 0 and removable(np.ones(100)) == 1
    assert removable(np.zeros(5)) == 5  # nothing matters


def verdicts(sizes: list[str]) -> list[str]:
    """Findings where the named dimensions can lose all but one channel, the others none."""
    kinds = {
        "s1.b0.mb4d.hidden": "mlp.hidden", "s2.t0.mb3d.key": "attn.key",
        "s2.t0.mb3d.value": "attn.value", "s2.b0.cga.key": "group_attn.key",
        "s2.b0.cga.value": "group_attn.value", "s2.b0.cga.hidden.0": "ffn.hidden",
    }  # fmt: skip
    importance = {name: np.array([1.0] + [1e-9 if name in sizes else 1.0] * 9) for name in kinds}
    return [each.verdict for each in findings(shares(importance, kinds), stages=2)]


def test_findings_follow_the_numbers():
    redundant = ["s2.t0.mb3d.key", "s2.b0.cga.key", "s2.b0.cga.hidden.0"]
    assert verdicts(redundant) == ["reproduced"] * 4
    opposite = ["s2.t0.mb3d.value", "s2.b0.cga.value", "s1.b0.mb4d.hidden"]
    assert verdicts(opposite) == ["refuted", "refuted", "refuted", "refuted"]
    assert verdicts([]) == ["not told apart"] * 4


def test_a_kind_that_a_space_lacks_is_not_measured():
    found = findings(shares({"s1.b0.mb4d.hidden": np.ones(4)}, {"s1.b0.mb4d.hidden": "mlp.hidden"}),
                     stages=1)  # fmt: skip
    assert [each.verdict for each in found[:3]] == ["not measured"] * 3
    assert "there are no attn.key here" in found[0].here


# ---------------------------------------------------------------- heads
def test_outputs_are_put_together_image_by_image_and_head_by_head(supernet):
    space = supernet.space
    blocks = {block.kind: block for p in covering_paths(space) for block in space.blocks(p)}
    cga, mb3d = blocks["cga"], blocks["mb3d"]
    heads, images, windows, side = cga.heads, 2, 4, 3
    outputs = torch.zeros(images * windows, cga.channels, side, side)
    for row, channel in product(range(images * windows), range(cga.channels)):
        outputs[row, channel] = 100 * (row // windows) + channel // (cga.channels // heads)
    together = by_head(outputs, cga, images)
    assert together.shape == (images, heads, windows * cga.channels // heads * side * side)
    wanted = 100.0 * torch.arange(images)[:, None] + torch.arange(heads)
    assert torch.equal(together.mean(2), wanted) and float(together.var(2).max()) == 0
    width = mb3d.heads * mb3d.value
    tokens = (torch.arange(width) // mb3d.value).float().expand(images, 5, width)
    together = by_head(tokens, mb3d, images)
    assert torch.equal(together.mean(2), torch.arange(mb3d.heads).float().expand(images, -1))


def test_the_largest_cosine_is_that_of_the_most_alike_other_head():
    outputs = torch.randn(3, 4, 10, generator=torch.Generator().manual_seed(0))
    wanted = []
    for image in outputs:
        largest = [
            max(float(F.cosine_similarity(image[a], image[b], dim=0)) for b in range(4) if b != a)
            for a in range(4)
        ]
        wanted.append(sum(largest) / 4)
    torch.testing.assert_close(most_alike(outputs).float(), torch.tensor(wanted))


def test_equal_heads_are_found_to_be_equal_and_others_not(small, quarters):
    supernet = SuperNet(small, seed=1)
    paths = covering_paths(small)
    before = {row.slot: row for row in head_similarities(supernet, paths, quarters, CONFIG)}
    assert {row.kind for row in before.values()} == {"cga", "mb3d"}
    assert all(-1 <= row.similarity < 0.999 for row in before.values())
    slot = next(name for name, row in before.items() if row.kind == "mb3d")
    tensors = {name: own for name, own in supernet.tensors(slot).items() if ".0." in name}
    heads = before[slot].heads
    with torch.no_grad():
        for name, own in tensors.items():
            if "qkv" in name or "bias.table" in name:
                rows = own.view(heads, -1)
                rows.copy_(rows[:1].expand(heads, -1).clone())
    after = {row.slot: row for row in head_similarities(supernet, paths, quarters, CONFIG)}
    assert after[slot].similarity == pytest.approx(1, abs=1e-5)


def test_looking_at_heads_does_not_change_what_the_network_says(supernet, quarters):
    path = covering_paths(supernet.space)[-1]
    statistics = fit_statistics(supernet, path, quarters)
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        before = supernet(images, path, statistics)
        found = head_outputs(supernet, images, path, statistics)
        assert torch.equal(supernet(images, path, statistics), before)
    assert all(outputs.shape[:2] == (2, getattr(block, "heads", 0)) for _, block, outputs in found)
