"""Our importance against Torch-Pruning's, an independent implementation, on a plain conv stack.

They agree where they define the same thing. The derivative of the loss by a gate on a channel is
the sum of weight x gradient over the weights that read the channel, which is Torch-Pruning's
multivariable Taylor importance of that layer's input channels, an absolute value; ours squares it,
image by image. Torch-Pruning adds the importance of the layer that makes the channel, and its
default takes absolute values weight by weight: no number is equal then, but the order is alike.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr

from nas.data import Data, eval_batches
from nas.network import NasHybrid
from nas.space import SearchSpace
from nas.supernet import SuperNet, TrainConfig, fit_statistics, train
from nas.supernet.evaluate import first_images
from nas.supernet.taylor import TaylorConfig, measure_importance, sample_gradients

tp = pytest.importorskip("torch_pruning")

Numbers = npt.NDArray[np.float64]

# The layer that makes the channels, and the one that reads them, in the extracted network.
LAYERS = {
    "stem.widths.0": ("stem.convs.0.conv", "stem.convs.1.conv"),
    "s1.b0.mb4d.hidden": ("stages.0.0.parts.1.expand.conv", "stages.0.0.parts.1.project.conv"),
    "s2.b0.mb4d.hidden": ("stages.1.1.parts.1.expand.conv", "stages.1.1.parts.1.project.conv"),
}


@pytest.fixture(scope="module")
def stack(small: SearchSpace) -> SearchSpace:
    """Convolutions only: a stem, MLPs of 1x1 convolutions between pools, a downsampling."""
    first, second = small.stages
    plain = replace(second, kinds=("mb4d",), tail=(0,), by=("downsample",), depth=(1,))
    return small.replace(stages=(first, plain))


@pytest.fixture(scope="module")
def trained(stack, quarters, tmp_path_factory):
    config = TrainConfig(steps=20, batch_size=32, largest=1.0, sandwich=0.0)
    return train(SuperNet(stack), quarters, config, tmp_path_factory.mktemp("stack")).supernet


def members(model: NasHybrid, name: str, **options: Any) -> tuple[Numbers, Numbers]:
    """Torch-Pruning's importance of each layer of a group: rows makes, reads."""
    makes, reads = (model.get_submodule(layer) for layer in LAYERS[name])
    # it warns of layer scales, which have no input or output channels of their own
    graph = tp.DependencyGraph().build_dependency(model, torch.randn(2, 3, 16, 16), verbose=False)
    group = graph.get_pruning_group(
        makes, tp.prune_conv_out_channels, idxs=list(range(makes.get_parameter("weight").shape[0]))
    )
    layers = [dep.target.module for dep, _ in group]
    assert makes in layers and reads in layers
    conv = [torch.nn.modules.conv._ConvNd]
    scorer = tp.importance.GroupTaylorImportance(
        group_reduction=None, normalizer=None, target_types=conv, **options
    )
    rows = dict(zip([id(x) for x in layers if isinstance(x, conv[0])], scorer(group), strict=True))
    return rows[id(makes)].double().numpy(), rows[id(reads)].double().numpy()


def with_gradients(supernet: SuperNet, data: Data, images: int) -> NasHybrid:
    """The largest network alone, with the gradients of its mean loss."""
    path = supernet.space.largest()
    model = supernet.extract(path, fit_statistics(supernet, path, data))
    ((batch, labels),) = eval_batches(
        first_images(data.split("train"), images), data, batch_size=images
    )
    if images == 1:
        batch, labels = batch.repeat(2, 1, 1, 1), labels.repeat(2)
    torch.autograd.backward(F.cross_entropy(model(batch), labels))
    return model


@pytest.mark.parametrize("name", LAYERS)
def test_one_images_importance_is_the_square_of_torch_prunings(trained, quarters, name):
    path = trained.space.largest()
    model = with_gradients(trained, quarters, 1)
    _, reads = members(model, name, multivariable=True)
    statistics = fit_statistics(trained, path, quarters)
    image = first_images(quarters.split("train"), 1)
    ((batch, labels),) = eval_batches(image, quarters, batch_size=1)
    own = sample_gradients(trained, batch, labels, path, statistics)[name][0].double().numpy()
    np.testing.assert_allclose(own**2, reads**2, rtol=2e-3, atol=1e-9)


@pytest.mark.parametrize("name", LAYERS)
def test_over_many_images_the_order_is_like_torch_prunings_default(trained, quarters, name):
    """Theirs is of the mean gradient, ours of each image's: alike, not equal."""
    model = with_gradients(trained, quarters, 64)
    makes, reads = members(model, name, multivariable=False)
    path = trained.space.largest()
    own = measure_importance(trained, [path], quarters, TaylorConfig(images=64))[name]
    assert spearmanr(own, makes + reads).statistic > 0.5
