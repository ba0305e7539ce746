from collections.abc import Callable

import pytest
import torch

from nas.block import Block
from nas.errors import ConfigError, TrainingDiverged
from nas.supernet import Choice, FitChoiceConfig, SuperNet, fit_choice
from nas.supernet.choice import spots
from nas.supernet.choosing import expected_latency
from nas.supernet.paths import choice_path

FEW = FitChoiceConfig(steps=6, batch_size=16, lr=0.3)


def same_price(block: Block) -> float:
    return 0.01


def dear(kind: str) -> Callable[[Block], float]:
    """Return prices where one kind costs ten times what the others do."""
    return lambda block: 0.1 if block.kind == kind else 0.01


def test_the_expected_latency_is_the_mean_over_networks_that_are_drawn(tiny):
    choice = Choice(tiny)
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in choice.logits.values():
            value.copy_(torch.randn(len(value), generator=draws))
    genes = choice_path(tiny, seed=0, number=0)

    def price(block: Block) -> float:
        return block.macs / 1e6

    expected = float(expected_latency(choice, spots(tiny, genes), price).detach())
    total = 0.0
    for _ in range(1200):
        weights = choice.sample(draws, temperature=1.0)
        drawn = {g: choice.options[g][int(w.argmax())] for g, w in weights.items()}
        total += sum(map(price, tiny.blocks(tiny.architecture({**genes, **drawn}))))
    assert total / 1200 == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize(("form", "weight"), [("linear", 20.0), ("log", 20.0)])
@pytest.mark.parametrize("kind", ["cga", "mb4d"])
def test_a_kind_that_is_dear_on_a_target_loses_there(small, quarters, form, weight, kind):
    supernet = SuperNet(small, seed=0)
    config = FitChoiceConfig(steps=12, batch_size=16, lr=0.3, form=form, weight=weight)
    fitted = fit_choice(supernet, quarters, dear(kind), 0.1, config).probabilities()
    for gene in ("s2.b0.kind", "s2.b1.kind"):
        assert fitted[gene][kind] == min(fitted[gene].values()) < 0.2, fitted


def test_weights_and_the_logits_to_begin_with_stay_as_they_are(small, quarters):
    supernet, start = SuperNet(small, seed=0), Choice(small)
    with torch.no_grad():
        start.logits["s2.by"].copy_(torch.tensor([3.0, 0.0]))
    before = {name: value.clone() for name, value in supernet.state_dict().items()}
    fitted = fit_choice(supernet, quarters, same_price, 0.1, FEW, start=start)
    assert all(torch.equal(before[n], value) for n, value in supernet.state_dict().items())
    assert start.logits["s2.by"].tolist() == [3.0, 0.0]
    assert fitted.probabilities()["s2.by"]["downsample"] > 0.7


def test_the_same_seed_gives_the_same_logits_and_progress_is_told(small, quarters):
    texts: list[str] = []
    supernet = SuperNet(small, seed=0)
    first = fit_choice(
        supernet, quarters, same_price, 0.1, FEW, progress=lambda *all_: texts.append(all_[2])
    )
    again = fit_choice(supernet, quarters, same_price, 0.1, FEW)
    assert first.probabilities() == again.probabilities()
    assert len(texts) == 6 and "expected 0.0" in texts[-1] and texts[-1].endswith(" ms")


def test_a_price_that_is_the_same_for_all_kinds_leaves_accuracy_to_decide(small, quarters):
    supernet = SuperNet(small, seed=0)
    plain = FitChoiceConfig(steps=6, batch_size=16, lr=0.3, weight=0.0)
    alone = fit_choice(supernet, quarters, same_price, 0.1, plain)
    priced = fit_choice(supernet, quarters, same_price, 0.1, FEW)
    for gene, value in alone.logits.items():
        torch.testing.assert_close(priced.logits[gene], value, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("price", "reference_ms", "form", "message"),
    [
        (same_price, 0.0, "linear", "reference_ms must be a time above 0, but is 0"),
        (same_price, float("nan"), "linear", "reference_ms must be"),
        (
            lambda block: float("nan"),
            0.1,
            "linear",
            r"a price must be a time in ms, but stem_.* nan",
        ),
        (lambda block: -1.0, 0.1, "linear", "a price must be a time"),
        (same_price, 0.0005, "log", r"latencies above 0\.001 ms.*Use form=linear"),
    ],
)
def test_what_is_no_latency_is_refused(small, quarters, price, reference_ms, form, message):
    config = FitChoiceConfig(steps=1, form=form)
    with pytest.raises(ConfigError, match=message):
        fit_choice(SuperNet(small), quarters, price, reference_ms, config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"form": "log2"}, "form must be linear or log, but is 'log2'"),
        ({"batch_size": 1}, "batch_size must be from 2"),
        ({"weight": -1}, "weight must be from 0"),
        ({"tau_start": 0.1}, "tau_end must be at most tau_start"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        FitChoiceConfig(**changes)


def test_a_supernet_that_diverged_is_named(small, quarters):
    supernet = SuperNet(small)
    with torch.no_grad():
        for value in supernet.parameters():
            value.fill_(float("nan"))
    with pytest.raises(TrainingDiverged, match="may have diverged"):
        fit_choice(supernet, quarters, same_price, 0.1, FEW)
