"""Checkpoints: exact, atomic, and never silently wrong."""

import json
import logging
import pickle
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nas import checkpoint
from nas.errors import CorruptFile, StorageError

STATE: dict[str, Any] = {
    "text": "ä",
    "numbers": [1, 2.5, -0.1],
    "none": None,
    "flag": True,
    "deep": {"a": [{}]},
}


def some_tensors(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "weight": torch.randn(3, 4, generator=generator),
        "half": torch.randn(5, generator=generator).to(torch.bfloat16),
        "steps": torch.tensor(seed),
        "empty": torch.empty(0, 3),
        "mask": torch.tensor([True, False]),
    }


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(
        torch.equal(left[name], right[name]) and left[name].dtype == right[name].dtype
        for name in left
    )


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "new" / "folder", 7, some_tensors(1), STATE)
    found = checkpoint.load(tmp_path / "new" / "folder")
    assert found is not None
    assert (found.step, found.state) == (7, STATE)
    assert same(found.tensors, some_tensors(1))


def test_values_survive_any_memory_layout_and_shared_storage(tmp_path: Path) -> None:
    whole = torch.arange(2 * 3 * 4 * 4, dtype=torch.float32).reshape(2, 3, 4, 4)
    tensors = {
        "channels_last": whole.to(memory_format=torch.channels_last),
        "view": whole[:, 1:],
        "same_view": whole[:, 1:],
        "transposed": whole.transpose(1, 3),
        "parameter": nn.Parameter(torch.ones(2)),
    }
    checkpoint.save(tmp_path, 0, tensors, {})
    found = checkpoint.load(tmp_path)
    assert found is not None
    assert same(found.tensors, tensors)


def test_a_missing_or_empty_folder_has_no_checkpoint(tmp_path: Path) -> None:
    assert checkpoint.load(tmp_path / "nowhere") is None
    assert checkpoint.load(tmp_path) is None


def test_the_newest_two_are_kept_by_number_and_not_by_name(tmp_path: Path) -> None:
    for step in (8, 9, 10, 11):
        checkpoint.save(tmp_path, step, some_tensors(step), {"step": step})
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("step-10.json", "step-10.safetensors", "step-11.json", "step-11.safetensors")
    ]
    found = checkpoint.load(tmp_path)
    assert found is not None and found.step == 11


def test_what_a_killed_process_left_is_ignored_and_swept(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 1, some_tensors(1), {})
    (tmp_path / "step-2.safetensors").write_bytes(b"written, but the process died before its JSON")
    (tmp_path / ".step-2.json.x1y2").write_bytes(b"half")
    (tmp_path / "step-best.json").write_text("somebody else's")
    found = checkpoint.load(tmp_path)
    assert found is not None and found.step == 1
    checkpoint.save(tmp_path, 3, some_tensors(3), {})
    assert not (tmp_path / "step-2.safetensors").exists()
    assert not (tmp_path / ".step-2.json.x1y2").exists()
    assert (tmp_path / "step-best.json").exists()


def damages(raw: bytes) -> Iterator[bytes]:
    """Yield the file cut at, and with a bit flipped at, many offsets."""
    offsets = sorted({*range(0, len(raw), max(1, len(raw) // 60)), len(raw) - 1})
    for offset in offsets:
        yield raw[:offset]
        yield raw[:offset] + bytes([raw[offset] ^ 1 << offset % 8]) + raw[offset + 1 :]


@pytest.mark.parametrize("suffix", ["json", "safetensors"])
def test_damage_at_any_byte_of_the_newest_falls_back_to_the_previous(
    tmp_path: Path, suffix: str, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (1, 2):
        checkpoint.save(tmp_path, step, some_tensors(step), STATE | {"step": step})
    victim = tmp_path / f"step-2.{suffix}"
    whole = victim.read_bytes()
    fallbacks = 0
    for damaged in damages(whole):
        victim.write_bytes(damaged)
        with caplog.at_level(logging.WARNING):
            found = checkpoint.load(tmp_path)
        assert found is not None
        # A flip inside the JSON's white space changes nothing that is read.
        assert found.state == STATE | {"step": found.step}
        assert same(found.tensors, some_tensors(found.step))
        fallbacks += found.step == 1
    assert fallbacks > 100
    assert str(victim) in caplog.text


@pytest.mark.parametrize("suffix", ["json", "safetensors"])
def test_damage_at_any_byte_of_the_only_one_is_a_corrupt_file(tmp_path: Path, suffix: str) -> None:
    checkpoint.save(tmp_path, 4, some_tensors(4), STATE)
    victim = tmp_path / f"step-4.{suffix}"
    for damaged in damages(victim.read_bytes()):
        victim.write_bytes(damaged)
        try:
            found = checkpoint.load(tmp_path)
        except CorruptFile as error:
            assert str(tmp_path) in str(error) and "delete it" in str(error)
            continue
        assert found is not None and found.state == STATE and same(found.tensors, some_tensors(4))
        assert json.loads(damaged)["state"] == STATE


def test_a_tensor_file_that_vanished_is_damage(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 4, some_tensors(4), {})
    (tmp_path / "step-4.safetensors").unlink()
    with pytest.raises(CorruptFile, match=r"step-4\.safetensors"):
        checkpoint.load(tmp_path)


class Touch:
    """An object whose unpickling makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_a_pickle_is_refused_and_never_run(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    checkpoint.save(tmp_path, 1, some_tensors(1), {})
    (tmp_path / "step-1.safetensors").write_bytes(pickle.dumps(Touch(marker)))
    with pytest.raises(CorruptFile):
        checkpoint.load(tmp_path)
    assert not marker.exists()


def test_a_full_disk_is_a_storage_error_and_the_old_checkpoint_stays(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 1, some_tensors(1), {})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(StorageError, match=r"step-2\.safetensors.*Free space"):
            checkpoint.save(tmp_path, 2, {"big": torch.zeros(4096)}, {})
        with pytest.raises(StorageError, match=r"step-2\.json"):
            checkpoint.save(tmp_path, 2, some_tensors(2), {"big": "x" * 8192})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-1.json", "step-1.safetensors"]
    found = checkpoint.load(tmp_path)
    assert found is not None and same(found.tensors, some_tensors(1))


def test_a_folder_below_a_regular_file_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StorageError, match="choose another"):
        checkpoint.save(tmp_path / "file" / "folder", 1, {}, {})


def test_any_nest_of_state_comes_back_equal_and_of_the_same_types() -> None:
    nest = {
        "state": {0: {"step": torch.tensor(3.0), "name": "a"}, 11: {}},
        "groups": [{"betas": (0.9, 0.1 + 0.2), "params": [0, 11], "foreach": None, "on": True}],
    }
    tensors, plain = checkpoint.pack(nest, "optimizer")
    assert list(tensors) == ["optimizer.state.0.step"]
    back = checkpoint.unpack(json.loads(json.dumps(plain)), tensors)
    assert back == nest
    assert isinstance(back["groups"][0]["betas"], tuple)


def test_an_object_no_checkpoint_can_hold_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match=r"state\.rows\.1"):
        checkpoint.pack({"rows": [1, object()]}, "state")


def run_steps(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        images = torch.randn(4, 3, 6, 6).contiguous(memory_format=torch.channels_last)
        optimizer.zero_grad()
        model(images).square().mean().backward()
        optimizer.step()


def make_model() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Dropout(0.5), nn.Flatten())
    model = model.to(memory_format=torch.channels_last)
    decayed = [{"params": [p], "weight_decay": 0.1 * p.ndim} for p in model.parameters()]
    return model, torch.optim.AdamW(decayed, lr=0.01)


def named(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def test_an_optimizer_with_its_random_state_goes_on_bit_for_bit(tmp_path: Path) -> None:
    model, optimizer = make_model()
    run_steps(model, optimizer, 3)
    packed, plain = checkpoint.pack(optimizer.state_dict(), "optimizer")
    tensors = packed | {f"model.{k}": v for k, v in model.state_dict().items()}
    tensors |= {f"random.{k}": v for k, v in checkpoint.random_state().items()}
    checkpoint.save(tmp_path, 3, tensors, plain)
    run_steps(model, optimizer, 3)
    undisturbed = {name: value.clone() for name, value in model.state_dict().items()}

    model, optimizer = make_model()
    found = checkpoint.load(tmp_path)
    assert found is not None
    model.load_state_dict(named(found.tensors, "model."))
    checkpoint.restore_optimizer(optimizer, checkpoint.unpack(found.state, found.tensors))
    checkpoint.restore_random_state(named(found.tensors, "random."))
    moment = optimizer.state[next(model.parameters())]["exp_avg"]
    assert moment.stride() == next(model.parameters()).stride()
    run_steps(model, optimizer, 3)
    assert same(dict(model.state_dict()), undisturbed)


def test_the_digest_of_tensors_sees_every_value_name_shape_and_dtype() -> None:
    base = {"a": torch.zeros(2, 3), "b": torch.ones(1)}
    others = [
        {"a": torch.zeros(3, 2), "b": torch.ones(1)},
        {"a": torch.zeros(2, 3), "c": torch.ones(1)},
        {"a": torch.zeros(2, 3, dtype=torch.int32), "b": torch.ones(1)},
        {"a": torch.zeros(2, 3), "b": torch.ones(1) * (1 + 2**-23)},
    ]
    digests = {checkpoint.digest_tensors(tensors) for tensors in [base, *others]}
    assert len(digests) == 5
    swapped = {"b": base["b"], "a": base["a"].t().contiguous().t()}
    assert checkpoint.digest_tensors(swapped) == checkpoint.digest_tensors(base)
