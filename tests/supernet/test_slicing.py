import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from nas.block import Attn, Block, Cga, Downsample, GroupAttn, Mb3d, Mb4d, MbConv
from nas.network import build_block, part_prefixes
from nas.space import SearchSpace
from nas.supernet import slicing
from nas.supernet.slicing import slice_block


def tensors_of(block: Block) -> dict[str, Tensor]:
    """The block's parameters, every entry a number of its own."""
    counter = itertools.count(1)
    values = {}
    for name, parameter in build_block(block, device="meta").named_parameters():
        start = next(counter) * 1_000_000
        values[name] = torch.arange(start, start + parameter.numel(), dtype=torch.float64).reshape(
            parameter.shape
        )
    return values


def shapes_of(block: Block) -> dict[str, torch.Size]:
    return {
        name: value.shape for name, value in build_block(block, device="meta").named_parameters()
    }


def kept_indices(name: str, shape: torch.Size, hull: Block, small: Block) -> list[list[int]]:
    """Which entries of the hull's tensor make the small one, dimension by dimension.

    Written apart from the slice rules, entry by entry from what each row means.
    """
    indices = [list(range(length)) for length in shape]
    if name == "bias.table":
        assert isinstance(hull, Attn | GroupAttn) and isinstance(small, Attn | GroupAttn)
        far = hull.side if isinstance(hull, GroupAttn) else hull.resolution
        near = small.side if isinstance(small, GroupAttn) else small.resolution
        indices[1] = [far * row + column for row in range(near) for column in range(near)]
    elif isinstance(hull, Attn) and isinstance(small, Attn):
        a_head = 2 * hull.key + hull.value
        if name.startswith("qkv."):
            indices[0] = [
                a_head * head + offset + place
                for head in range(small.heads)
                for offset, length in (
                    (0, small.key),
                    (hull.key, small.key),
                    (2 * hull.key, small.value),
                )
                for place in range(length)
            ]
        elif name == "project.weight":
            indices[1] = [
                hull.value * head + place
                for head in range(small.heads)
                for place in range(small.value)
            ]
    elif isinstance(hull, GroupAttn) and isinstance(small, GroupAttn):
        if name.startswith("qkvs."):
            rows = [*range(small.key), *range(hull.key, hull.key + small.key)]
            indices[0] = [*rows, *range(2 * hull.key, 2 * hull.key + small.value)]
        elif name.startswith("queries.") and name.endswith("conv.weight"):
            head = int(name.split(".")[1])
            margin = (hull.kernels[head] - small.kernels[head]) // 2
            indices[2] = indices[3] = [margin + place for place in range(small.kernels[head])]
    elif isinstance(hull, MbConv) and name == "depthwise.conv.weight":
        assert isinstance(small, MbConv)
        margin = (hull.kernel - small.kernel) // 2
        indices[2] = indices[3] = [margin + place for place in range(small.kernel)]
    return indices


def assert_sliced_as_written(hull: Block, small: Block) -> None:
    tensors, shapes = tensors_of(hull), shapes_of(small)
    sliced = slice_block(tensors, shapes, hull, small)
    assert sliced.keys() == shapes.keys()
    parts = list(zip(part_prefixes(hull), hull.parts(), small.parts(), strict=True))
    for name, shape in shapes.items():
        prefix, hull_part, small_part = next(p for p in reversed(parts) if name.startswith(p[0]))
        kept = kept_indices(name.removeprefix(prefix), shape, hull_part, small_part)
        wanted = tensors[name].numpy()[np.ix_(*kept)]
        np.testing.assert_array_equal(sliced[name].numpy(), wanted, err_msg=f"{name} of {small}")


CGA = Cga(
    resolution=6, channels=32, heads=4, key=6, kernels=(7, 5, 3, 3), window=5, hidden=(40, 48)
)
MB3D = Mb3d(resolution=5, channels=24, heads=4, key=6, value=8, hidden=40)
MBCONV = MbConv(resolution=5, channels=24, hidden=48, kernel=7, squeeze=16)


@pytest.mark.parametrize(
    ("hull", "small"),
    [
        (CGA, replace(CGA, key=4)),
        (CGA, replace(CGA, kernels=(3, 5, 1, 3))),
        (CGA, replace(CGA, window=3)),
        (CGA, replace(CGA, channels=16, heads=2, kernels=(5, 3), key=2, hidden=(8, 16), window=4)),
        (CGA, CGA),
        (MB3D, replace(MB3D, key=4)),
        (MB3D, replace(MB3D, value=5)),
        (MB3D, replace(MB3D, heads=2)),
        (MB3D, replace(MB3D, resolution=3)),
        (MB3D, replace(MB3D, channels=16, heads=3, key=2, value=3, hidden=8, resolution=4)),
        (MBCONV, replace(MBCONV, kernel=3)),
        (MBCONV, replace(MBCONV, squeeze=0)),
        (MBCONV, replace(MBCONV, channels=16, hidden=8, kernel=5, squeeze=8)),
    ],
    ids=str,
)
def test_segments_and_kernels_are_cut_one_by_one(hull, small):
    assert_sliced_as_written(hull, small)


@pytest.mark.parametrize("name", SearchSpace.names())
def test_every_block_of_a_space_is_cut_out_of_its_slot(name):
    space = SearchSpace.load(name)
    hulls = space.hulls()
    rng = np.random.default_rng(0)
    seen = set()
    for slot, versions in space.variants():
        if versions in seen:  # the positions of a stage offer the same blocks
            continue
        seen.add(versions)
        picks = rng.choice(len(versions), size=min(4, len(versions)), replace=False)
        for pick in {0, *picks.tolist()}:
            assert_sliced_as_written(hulls[slot], versions[pick])


def test_corners_are_views_and_interleaved_segments_are_copies():
    hull = Mb4d(resolution=4, channels=24, hidden=48, pool=3)
    tensors = tensors_of(hull)
    small = replace(hull, channels=16, hidden=32)
    for name, value in slice_block(tensors, shapes_of(small), hull, small).items():
        assert value.data_ptr() == tensors[name].data_ptr()
    tensors = tensors_of(MB3D)
    small_attention = replace(MB3D, key=4)
    sliced = slice_block(tensors, shapes_of(small_attention), MB3D, small_attention)
    assert sliced["parts.0.qkv.weight"].data_ptr() != tensors["parts.0.qkv.weight"].data_ptr()


def test_gradients_reach_exactly_the_entries_that_were_cut():
    small = replace(MB3D, channels=16, heads=3, key=4, value=5)
    tensors = {name: value.requires_grad_() for name, value in tensors_of(MB3D).items()}
    sliced = slice_block(tensors, shapes_of(small), MB3D, small)
    torch.stack([value.sum() for value in sliced.values()]).sum().backward()  # type: ignore[no-untyped-call]
    for name, value in sliced.items():
        gradient = tensors[name].grad
        assert gradient is not None and gradient.sum() == value.numel()
        assert torch.equal(tensors[name][gradient.bool()].sort().values, value.flatten().sort()[0])


def test_a_shape_that_would_only_broadcast_is_refused():
    hull = Mb4d(resolution=4, channels=8, hidden=16, pool=3)
    tensors = tensors_of(hull)
    tensors["parts.0.scale.gamma"] = torch.ones(1)
    with pytest.raises(ValueError, match=r"parts\.0\.scale\.gamma.* has shape \(8,\)"):
        slice_block(tensors, shapes_of(hull), hull, hull)


@pytest.mark.parametrize(
    ("hull", "small"),
    [
        (Downsample(resolution=4, channels=8, out=8), Downsample(resolution=4, channels=9, out=8)),
        (CGA, replace(CGA, window=7)),
        (CGA, replace(CGA, act="gelu")),
        (CGA, replace(CGA, key=8)),
        (CGA, MB3D),
        (MB3D, replace(MB3D, value=10)),
        (MB3D, replace(MB3D, resolution=6)),
        (MBCONV, replace(MBCONV, kernel=9)),
        (replace(MBCONV, squeeze=0), MBCONV),
    ],
    ids=str,
)
def test_a_block_that_does_not_lie_inside_the_hull_is_refused(hull, small):
    with pytest.raises(ValueError, match="cannot be cut out of"):
        slice_block(tensors_of(hull), shapes_of(small), hull, small)


def test_channels_are_cut_by_whole_chunks_only():
    narrow_chunks = replace(CGA, channels=16)  # still four heads
    with pytest.raises(ValueError, match="chunks of 4 channels"):
        slice_block(tensors_of(CGA), shapes_of(narrow_chunks), CGA, narrow_chunks)


def test_a_kind_of_part_without_a_rule_is_refused(monkeypatch):
    monkeypatch.delitem(slicing.RULES, "mlp")
    hull = Mb4d(resolution=4, channels=8, hidden=16, pool=3)
    with pytest.raises(ValueError, match="no slice rule for parts of kind mlp"):
        slice_block(tensors_of(hull), shapes_of(hull), hull, replace(hull, hidden=8))
