from dataclasses import replace

import pytest
import torch
from torch import Tensor

from nas.block import Block
from nas.supernet import Choice, SuperNet, TrainConfig, train
from nas.supernet.choice import Spot, kind_genes, spots
from nas.supernet.paths import choice_path


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_there_are_logits_for_each_place_with_more_than_one_kind(tiny):
    choice = Choice(tiny)
    kinds = {f"s2.b{place}.kind" for place in range(4)}
    assert choice.logits.keys() == {"s2.by", *kinds}
    assert choice.probabilities()["s2.by"] == {"downsample": 0.5, "patch_merge": 0.5}
    only = replace(tiny.stages[1], kinds=("mb4d",), by=("downsample",))
    assert Choice(tiny.replace(stages=(tiny.stages[0], only))).logits == {}


def test_kinds_are_drawn_with_the_probabilities_of_the_softmax(tiny):
    choice = Choice(tiny)
    with torch.no_grad():
        choice.logits["s2.by"].copy_(torch.tensor([1.5, 0.0]))
    wanted = choice.probabilities()["s2.by"]["downsample"]
    draws = generator()
    times = sum(
        int(choice.sample(draws, temperature=3.0)["s2.by"].argmax() == 0) for _ in range(2000)
    )
    assert abs(times / 2000 - wanted) < 4 * (wanted * (1 - wanted) / 2000) ** 0.5


def test_samples_are_one_hot_and_pass_gradients_to_every_logit(tiny):
    choice = Choice(tiny)
    for gene, weights in choice.sample(generator(), temperature=1.0).items():
        assert sorted(weights.detach().tolist()) == [*[0.0] * (len(weights) - 1), 1.0]
        (gradient,) = torch.autograd.grad(weights[0], choice.logits[gene])
        assert (gradient != 0).all() and abs(float(gradient.sum())) < 1e-6


def mixed_by_hand(
    supernet: SuperNet, x: Tensor, path: tuple[Spot, ...], weights: dict[str, Tensor]
) -> Tensor:
    """Every candidate with its graph, weighted and summed: what the frugal way must equal."""
    for spot in path:
        outputs = [supernet.run_block(x, slot, block) for slot, block in spot.candidates]
        if spot.gene is None:
            (x,) = outputs
        else:
            pairs = zip(weights[spot.gene], outputs, strict=True)
            x = torch.stack([weight * output for weight, output in pairs]).sum(0)
    return x


def test_a_choice_step_gives_every_logit_its_exact_gradient_and_weights_none(tiny):
    supernet, choice = SuperNet(tiny, seed=0), Choice(tiny)
    x = torch.randn(8, 3, 16, 16, generator=generator(1))
    path = spots(tiny, choice_path(tiny, seed=0, number=0))
    logits = list(choice.logits.values())
    weights = choice.sample(generator(), temperature=1.0)
    expected_scores = mixed_by_hand(supernet, x, path, weights)
    expected = torch.autograd.grad(expected_scores.square().sum(), logits)
    weights = choice.sample(generator(), temperature=1.0)
    scores = supernet.forward_mixed(x, path, weights)
    torch.testing.assert_close(scores, expected_scores)
    scores.square().sum().backward()  # type: ignore[no-untyped-call]
    for value, wanted in zip(logits, expected, strict=True):
        assert value.grad is not None and (value.grad != 0).all()
        torch.testing.assert_close(value.grad, wanted, rtol=1e-3, atol=1e-5)
    assert all(parameter.grad is None for parameter in supernet.parameters())


def test_the_scores_of_a_choice_step_are_those_of_the_path_it_drew(tiny):
    supernet, choice = SuperNet(tiny, seed=0), Choice(tiny)
    x = torch.randn(8, 3, 16, 16, generator=generator(1))
    genes = choice_path(tiny, seed=0, number=3)
    for seed in range(4):
        weights = choice.sample(generator(seed), temperature=1.0)
        drawn = {gene: choice.options[gene][int(w.argmax())] for gene, w in weights.items()}
        alone = supernet(x, tiny.architecture({**genes, **drawn}))
        assert torch.equal(supernet.forward_mixed(x, spots(tiny, genes), weights), alone)


def test_a_choice_path_has_every_position_and_every_candidate(tiny):
    genes = kind_genes(tiny)
    for number in range(10):
        path = spots(tiny, choice_path(tiny, seed=0, number=number))
        offered = {spot.gene: spot.candidates for spot in path if spot.gene is not None}
        assert offered.keys() == genes.keys()
        for gene, candidates in offered.items():
            kinds = tuple(slot.rpartition(".")[2] for slot, _ in candidates)
            assert kinds == genes[gene]
            assert all(
                block.kind == kind for (_, block), kind in zip(candidates, kinds, strict=True)
            )


class Noisy(SuperNet):
    """A supernet in which one kind's branch is noise."""

    noisy = "cga"

    def _noise(self, x: Tensor, block: Block, output: Tensor) -> Tensor:
        return x + torch.randn_like(x) if block.kind == self.noisy else output

    def run_block(self, x, slot, block, statistics=None, *, fit=False):
        return self._noise(x, block, super().run_block(x, slot, block, statistics, fit=fit))

    def _run_frozen(self, x, slot, block):
        return self._noise(x, block, super()._run_frozen(x, slot, block))


@pytest.mark.parametrize("noisy", ["cga", pytest.param("mb4d", marks=pytest.mark.slow)])
@pytest.mark.slow
def test_a_kind_whose_branch_is_noise_falls_below_a_tenth(tiny, quarters, tmp_path, noisy):
    first, second = tiny.stages
    space = tiny.replace(
        stages=(replace(first, depth=(1,)), replace(second, depth=(2,), tail=(0,)))
    )
    supernet = Noisy(space, seed=0)
    supernet.noisy = noisy
    config = TrainConfig(
        steps=60, batch_size=32, choice_every=1, choice_lr=0.1, checkpoint_steps=1000, lr=3e-3
    )
    torch.manual_seed(0)
    trained = train(supernet, quarters, config, tmp_path)
    probabilities = trained.choice.probabilities()
    for gene in ("s2.b0.kind", "s2.b1.kind"):
        assert probabilities[gene][noisy] < 0.1, (gene, probabilities)
