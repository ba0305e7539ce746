import math

import pytest
import torch
import torch.nn.functional as F

from nas.supernet import SuperNet, fit_statistics, score
from nas.supernet.average import Average, mean_loss


def test_the_average_is_that_of_all_weights_by_decays_that_rise(small):
    supernet = SuperNet(small, seed=0)
    average = Average(supernet, 0.7)
    wanted = [value.detach().double() for value in supernet.parameters()]
    draws = torch.Generator().manual_seed(0)
    for update in range(1, 9):
        with torch.no_grad():
            for value in supernet.parameters():
                value.add_(torch.randn(value.shape, generator=draws))
        average.update(supernet)
        decay = min(0.7, 1 - (1 + update) ** (-2 / 3))
        now = [value.detach().double() for value in supernet.parameters()]
        wanted = [decay * own + (1 - decay) * new for own, new in zip(wanted, now, strict=True)]
    assert decay == 0.7 and average.updates == 8
    for own, mean in zip(average.supernet.parameters(), wanted, strict=True):
        torch.testing.assert_close(own.double(), mean, rtol=1e-4, atol=1e-5)


def test_the_average_keeps_memory_layouts_and_comes_back_from_its_state(small):
    supernet = SuperNet(small, seed=0).to(memory_format=torch.channels_last)
    average = Average(supernet, 0.9)
    average.update(supernet)
    for own, value in zip(average.supernet.parameters(), supernet.parameters(), strict=True):
        assert own.stride() == value.stride() and not own.requires_grad
    other = Average(SuperNet(small, seed=5), 0.9)
    other.load_state_dict(average.state_dict())
    assert other.updates == 1
    for own, value in zip(other.supernet.parameters(), supernet.parameters(), strict=True):
        assert torch.equal(own, value)


def test_the_mean_loss_is_that_of_the_networks_on_the_choice_split(small, quarters):
    supernet = SuperNet(small, seed=0)
    paths = [small.smallest(), small.largest()]
    split = quarters.split("choice")
    images = (split.images.float() / 255 - 0.5) / 0.25
    each = []
    for path in paths:
        model = supernet.extract(path, fit_statistics(supernet, path, quarters))
        with torch.no_grad():
            each.append(float(F.cross_entropy(model(images), split.labels)))
    assert mean_loss(supernet, paths, quarters) == pytest.approx(sum(each) / 2, rel=1e-4)
    of_search = [score(supernet, path, quarters).loss for path in paths]
    assert not math.isclose(mean_loss(supernet, paths, quarters), sum(of_search) / 2, rel_tol=1e-3)
