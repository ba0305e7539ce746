"""Importance of blocks against differences, and the table that slimming reads."""

import pytest
import torch
import torch.nn.functional as F

from nas.data import Data, eval_batches
from nas.space import SearchSpace
from nas.supernet import SuperNet, fit_statistics
from nas.supernet.choice import kind_genes
from nas.supernet.taylor import (
    TaylorConfig,
    branch_slopes,
    fitted_path,
    measure_branches,
    predicted_losses,
)


def uneven(space: SearchSpace) -> dict[str, dict[str | int, float]]:
    """Return probabilities in which the first kind of each gene is three times as likely."""
    found = {}
    for gene, options in kind_genes(space).items():
        raw = {option: 3.0 if place == 0 else 1.0 for place, option in enumerate(options)}
        found[gene] = {option: value / sum(raw.values()) for option, value in raw.items()}
    return found


def test_slopes_are_differences_of_the_loss_by_what_each_block_adds(
    tiny: SearchSpace, quarters: Data
) -> None:
    supernet = SuperNet(tiny, seed=1)
    path = fitted_path(tiny, uneven(tiny))
    statistics = fit_statistics(supernet, path, quarters)
    split = quarters.split("train")
    images, labels = next(
        iter(eval_batches(split, quarters, batch_size=5, device=torch.device("cpu")))
    )
    supernet.double()
    images = images.double()
    statistics = tuple(
        {name: v.double() if v.is_floating_point() else v for name, v in block.items()}
        for block in statistics
    )

    @torch.no_grad()
    def losses(at: str, gate: float) -> torch.Tensor:
        x = images
        for place, (slot, block) in enumerate(supernet.walk(path)):
            before, x = x, supernet.run_block(x, slot, block, statistics[place])
            if slot == at:
                x = before + gate * (x - before)
        return F.cross_entropy(x, labels, reduction="none")

    slopes = dict(branch_slopes(supernet, images, labels, path, statistics))
    assert [
        slot for slot in tiny.slots(path) if slot[3:4] in ("b", "t") and ".by." not in slot
    ] == list(slopes)
    for slot, found in slopes.items():
        step = 1e-5
        expected = (losses(slot, 1 + step) - losses(slot, 1 - step)) / (2 * step)
        assert found == pytest.approx(expected.numpy(), rel=2e-3, abs=1e-6)


def test_importance_does_not_depend_on_the_batches(tiny: SearchSpace, quarters: Data) -> None:
    supernet = SuperNet(tiny, seed=1)
    path = fitted_path(tiny, uneven(tiny))
    found = [
        measure_branches(supernet, path, quarters, TaylorConfig(images=13, batch_size=size))
        for size in (1, 4, 13)
    ]
    assert found[0] == pytest.approx(found[1], rel=1e-4)
    assert found[0] == pytest.approx(found[2], rel=1e-4)
    assert all(value > 0 for value in found[0].values())


def test_the_fitted_path_is_the_largest_with_the_likeliest_kinds(tiny: SearchSpace) -> None:
    probabilities = uneven(tiny)
    choice = tiny.choice(fitted_path(tiny, probabilities))
    largest = tiny.choice(tiny.largest())
    for gene, option in choice.items():
        if gene in probabilities:
            assert option == tiny.genes()[gene][0]
        elif gene.endswith((".width", ".depth")):
            assert option == largest[gene]


def test_every_option_of_every_gene_has_a_loss_and_the_path_loses_nothing() -> None:
    space = SearchSpace.load("hybrid-64")
    probabilities = uneven(space)
    path = fitted_path(space, probabilities)
    branches = {
        slot: 1.0 + number
        for number, slot in enumerate(space.slots(path))
        if slot[3:4] in ("b", "t") and ".by." not in slot
    }
    lost = predicted_losses(space, path, branches, probabilities)
    choice = space.choice(path)
    assert lost.keys() == space.genes().keys()
    for gene, options in space.genes().items():
        assert lost[gene].keys() == set(options)
        assert min(lost[gene].values()) >= 0
        kind = gene.split(".")[1]
        if gene.count(".") == 1 or any(slot.endswith(f".{kind}") for slot in branches):
            assert lost[gene][choice[gene]] == min(lost[gene].values()), gene
    # a block less loses the last of those in front; a smaller width its share of the stage
    front = [value for slot, value in branches.items() if slot.startswith("s3.b")]
    depths = space.genes()["s3.depth"]
    assert lost["s3.depth"][depths[-2]] == front[-1]
    assert lost["s3.depth"][depths[-3]] == front[-1] + front[-2]
    stage = sum(value for slot, value in branches.items() if slot.startswith("s3."))
    assert lost["s3.width"][48] == pytest.approx(stage * (1 - 48 / 80))
    kinds = lost["s3.b0.kind"]
    assert kinds["mb4d"] == 0
    assert kinds["cga"] == pytest.approx(branches["s3.b0.mb4d"] * 2 / 3)
