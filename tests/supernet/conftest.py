from dataclasses import replace

import numpy as np
import pytest
import torch

from nas.data import Augment, Data, Split
from nas.space import SearchSpace


def _split(name: str, count: int, first: int, side: int) -> Split:
    """Noisy images whose class is the quarter that is bright."""
    rng = np.random.default_rng(first)
    labels = np.arange(count) % 4
    images = rng.integers(0, 120, (count, 3, side, side), dtype=np.uint8)
    half = side // 2
    for image, label in zip(images, labels, strict=True):
        row, column = label // 2 * half, label % 2 * half
        image[:, row : row + half, column : column + half] += 100
    return Split.of(
        name,
        torch.from_numpy(images),
        torch.from_numpy(labels),
        torch.arange(first, first + count),
    )


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def quarters() -> Data:
    """64 + 32 + 48 images of 16 pixels in four classes."""
    return Data(
        name="quarters",
        image_size=16,
        in_chans=3,
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        class_names=("a", "b", "c", "d"),
        augment=Augment(shift=0.05),
        splits={
            "train": _split("train", 64, 0, 16),
            "choice": _split("choice", 32, 1000, 16),
            "search": _split("search", 48, 2000, 16),
        },
    )


@pytest.fixture(scope="session")
def tiny() -> SearchSpace:
    """A small space with every kind, for the images of `quarters`."""
    blocks = {
        "mb4d": {"expand": [2, 4], "pool": [3]},
        "cga": {"expand": [1, 2], "key": [8], "kernels": [[5, 3]], "window": [7]},
        "mb3d": {"expand": [2], "heads": [4], "key": [8], "value": [16]},
        "mbconv": {"expand": [2, 4], "kernel": [3, 5], "se": [0, 0.25]},
        "patch_merge": {"expand": [2]},
    }
    kinds = ["mb4d", "cga", "mbconv"]
    second = {"width": [32, 48, 64], "depth": [1, 2, 3, 4], "kinds": kinds}
    plain = {
        "schema": 1,
        "name": "every-kind",
        "image_size": 16,
        "num_classes": 4,
        "act": "relu",
        "head": {"norm": "batch"},
        "blocks": blocks,
        "stages": [
            {"width": [16, 24, 32], "depth": [1, 2, 3], "kinds": ["mb4d"]},
            {**second, "head_dim": 16, "tail": [0, 1], "by": ["downsample", "patch_merge"]},
        ],
    }
    return SearchSpace.from_plain(plain)


@pytest.fixture(scope="session")
def small(tiny: SearchSpace) -> SearchSpace:
    """Every kind of tiny in fewer places, for tests that train."""
    first, second = tiny.stages
    return tiny.replace(
        stages=(replace(first, depth=(1,)), replace(second, depth=(1, 2), width=(32, 48)))
    )
