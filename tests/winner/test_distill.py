"""Training: it learns, resumes bit for bit, keeps its checkpoints, and says what went wrong."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from nas import checkpoint, files
from nas.data import Augment, Data, Split
from nas.errors import ConfigError, CorruptFile, StorageError, TrainingDiverged
from nas.winner.distill import LOWEST_LR, DistillConfig, _Run, evaluate, train

CONFIG = DistillConfig(
    epochs=4, batch_size=8, lr=0.01, warmup_epochs=1, ema_decay=0.9, checkpoint_steps=5
)
STEPS = 24  # 4 epochs of 50 // 8


def make_split(name: str, count: int, seed: int) -> Split:
    """Return images whose brightest quarter is their class."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 150, (count, 3, 8, 8), generator=generator)
    labels = torch.randint(0, 4, (count,), generator=generator)
    for row, label in enumerate(labels.tolist()):
        down, right = label // 2 * 4, label % 2 * 4
        images[row, :, down : down + 4, right : right + 4] += 60
    return Split.of(name, images.to(torch.uint8), labels, torch.arange(count))


@pytest.fixture(scope="module")
def data() -> Data:
    return Data(
        name="fake",
        image_size=8,
        in_chans=3,
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        class_names=tuple("abcd"),
        augment=Augment(shift=0.1, brightness=0.1),
        splits={"train": make_split("train", 50, 1), "search": make_split("search", 60, 2)},
    )


class Net(nn.Module):
    """A small classifier with all that a checkpoint must keep: BatchNorm, dropout, two heads."""

    def __init__(self, *, has_two_heads: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.1)
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.head = nn.Linear(32, 4)
        self.head_dist = nn.Linear(32, 4) if has_two_heads else None
        self.distilled_training = False

    def set_distilled_training(self, enable: bool = True) -> None:
        assert self.head_dist is not None
        self.distilled_training = enable

    def get_classifier(self) -> Any:
        return self.head if self.head_dist is None else (self.head, self.head_dist)

    def forward(self, images: Tensor) -> Any:
        x = self.pool(self.norm(self.conv(images)).relu())
        x = self.drop(x.flatten(1))
        if self.head_dist is None:
            return self.head(x)
        if self.distilled_training and self.training:
            return self.head(x), self.head_dist(x)
        return (self.head(x) + self.head_dist(x)) / 2


def make_net(seed: int = 0, *, has_two_heads: bool = False) -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Net(has_two_heads=has_two_heads)


def same(left: nn.Module, right: nn.Module) -> bool:
    one, other = left.state_dict(), right.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


class Stop(Exception):
    """Stands for kill -9."""


def stop_after(step: int) -> Callable[[int, int, str], None]:
    def progress(done: int, total: int, text: str) -> None:
        if done == step:
            raise Stop

    return progress


def test_a_network_learns_and_the_result_says_so(data: Data) -> None:
    net = make_net()
    seen: list[tuple[int, int, str]] = []
    config = replace(CONFIG, epochs=20)
    result = train(net, data, config, progress=lambda *news: seen.append(news))
    assert result.model is net and not net.training
    assert result.score.accuracy > 0.9
    assert result.score == evaluate(net, data.split("search"), data)
    assert len(result.losses) == 20 and result.losses[-1] < 0.7 * result.losses[0]
    assert [done for done, _, _ in seen] == list(range(1, 121))
    assert seen[-1][1:] == (120, f"epoch 20/20, loss {float(seen[-1][2][-5:]):.3f}")
    assert result.digest == checkpoint.digest_tensors(net.state_dict())


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(data: Data) -> None:
    nets = [make_net() for _ in range(3)]
    for net, seed in zip(nets, (0, 0, 1), strict=True):
        torch.manual_seed(id(net) % 1000)
        train(net, data, replace(CONFIG, seed=seed))
    assert same(nets[0], nets[1])
    assert not same(nets[0], nets[2])


def test_the_callers_random_numbers_go_on_as_if_nothing_had_been(data: Data) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(make_net(), data, replace(CONFIG, epochs=2))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("killed_at", [3, 5, 6, 7, 12, 23])
def test_a_killed_training_goes_on_bit_for_bit(data: Data, tmp_path: Path, killed_at: int) -> None:
    teacher = make_net(9)
    undisturbed = make_net(has_two_heads=True)
    whole = train(undisturbed, data, CONFIG, teacher=teacher)
    with pytest.raises(Stop):
        train(
            make_net(has_two_heads=True),
            data,
            CONFIG,
            teacher=teacher,
            folder=tmp_path,
            progress=stop_after(killed_at),
        )
    again = make_net(has_two_heads=True)
    steps: list[int] = []
    resumed = train(
        again,
        data,
        CONFIG,
        teacher=teacher,
        folder=tmp_path,
        progress=lambda done, total, text: steps.append(done),
    )
    assert steps == list(range(killed_at // 5 * 5 + 1, STEPS + 1))
    assert same(again, undisturbed)
    assert (resumed.score, resumed.losses, resumed.digest) == (
        whole.score,
        whole.losses,
        whole.digest,
    )


def test_a_finished_training_is_returned_at_once(data: Data, tmp_path: Path) -> None:
    first = train(make_net(), data, CONFIG, folder=tmp_path)

    def never(done: int, total: int, text: str) -> None:
        raise AssertionError("a step was taken")

    again = train(make_net(), data, CONFIG, folder=tmp_path, progress=never)
    assert same(first.model, again.model) and first.score == again.score
    assert again.losses == first.losses and again.steps == STEPS
    assert not again.model.training


def test_a_damaged_newest_checkpoint_costs_one_interval_and_no_bit(
    data: Data, tmp_path: Path
) -> None:
    undisturbed = train(make_net(), data, CONFIG)
    with pytest.raises(Stop):
        train(make_net(), data, CONFIG, folder=tmp_path, progress=stop_after(14))
    newest = tmp_path / "step-10.safetensors"
    newest.write_bytes(newest.read_bytes()[:-7])
    resumed = train(make_net(), data, CONFIG, folder=tmp_path)
    assert same(resumed.model, undisturbed.model)


def test_a_folder_of_nothing_but_damage_is_a_corrupt_file(data: Data, tmp_path: Path) -> None:
    train(make_net(), data, CONFIG, folder=tmp_path)
    for path in tmp_path.glob("*.json"):
        path.write_text("{")
    with pytest.raises(CorruptFile, match="every checkpoint"):
        train(make_net(), data, CONFIG, folder=tmp_path)


@pytest.mark.parametrize(
    ("settings", "net_seed", "named"),
    [({"lr": 0.02}, 0, "another lr"), ({}, 1, "another starting weights")],
)
def test_another_training_in_the_folder_is_refused_by_what_differs(
    data: Data, tmp_path: Path, settings: dict[str, Any], net_seed: int, named: str
) -> None:
    train(make_net(), data, CONFIG, folder=tmp_path)
    with pytest.raises(ConfigError, match=f"{named}.*Choose another folder"):
        train(make_net(net_seed), data, replace(CONFIG, **settings), folder=tmp_path)


def test_other_data_or_another_teacher_is_another_training(data: Data, tmp_path: Path) -> None:
    train(make_net(), data, CONFIG, folder=tmp_path, teacher=make_net(8))
    others = replace(data, splits=dict(data.splits) | {"train": make_split("train", 50, 3)})
    with pytest.raises(ConfigError, match="another data"):
        train(make_net(), others, CONFIG, folder=tmp_path, teacher=make_net(8))
    with pytest.raises(ConfigError, match="another teacher"):
        train(make_net(), data, CONFIG, folder=tmp_path)


def test_another_checkpoint_interval_is_the_same_training(data: Data, tmp_path: Path) -> None:
    with pytest.raises(Stop):
        train(make_net(), data, CONFIG, folder=tmp_path, progress=stop_after(6))
    resumed = train(make_net(), data, replace(CONFIG, checkpoint_steps=100), folder=tmp_path)
    assert same(resumed.model, train(make_net(), data, CONFIG).model)


class Breaking(nn.Module):
    """Gives NaN scores, or infinite gradients, from its given forward pass on."""

    def __init__(self, net: nn.Module, *, at: int, by: str) -> None:
        super().__init__()
        self.net, self.at, self.by, self.count = net, at, by, 0

    def forward(self, images: Tensor) -> Any:
        self.count += 1
        scores = self.net(images)
        if self.count == self.at and self.by == "loss":
            return scores * math.nan
        if self.count == self.at:
            # d sqrt(x) / dx is infinite at 0, while the score itself stays what it was
            return scores + (scores - scores.detach()).abs().sqrt()
        return scores


@pytest.mark.parametrize("by", ["loss", "gradient"])
def test_a_divergence_names_its_step_and_leaves_the_last_checkpoint(
    data: Data, tmp_path: Path, by: str
) -> None:
    with pytest.raises(TrainingDiverged, match=rf"{by} became \S+ at step 13 of 24.*intact") as one:
        train(Breaking(make_net(), at=13, by=by), data, CONFIG, folder=tmp_path)
    assert "Lower lr (0.01)" in str(one.value)
    found = checkpoint.load(tmp_path)
    assert found is not None and found.step == 10
    assert all(value.isfinite().all() for value in found.tensors.values())


def test_checkpoints_that_cannot_be_written_are_a_storage_error(data: Data, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write"):
        train(make_net(), data, CONFIG, folder=tmp_path / "file" / "run")


def test_a_teacher_improves_on_labels_that_are_wrong(data: Data) -> None:
    teacher = make_net(3)
    train(teacher, data, replace(CONFIG, epochs=20))
    train_split = data.split("train")
    wrong = Split.of("train", train_split.images, train_split.labels.flip(0), train_split.indices)
    noisy = replace(data, splits=dict(data.splits) | {"train": wrong})
    config = replace(CONFIG, epochs=15, alpha=0.9)
    alone = train(make_net(), noisy, config)
    taught = {
        kind: train(make_net(), noisy, replace(config, distill_type=kind), teacher=teacher)
        for kind in ("soft", "hard")
    }
    for result in taught.values():
        assert result.score.accuracy > alone.score.accuracy + 0.3


def test_both_heads_are_averaged_after_distillation(data: Data) -> None:
    net = make_net(has_two_heads=True)
    train(net, data, CONFIG, teacher=make_net(3))
    assert not net.distilled_training
    images = torch.randn(2, 3, 8, 8)
    assert net(images).shape == (2, 4)


def test_the_average_is_the_result_and_zero_switches_it_off(data: Data) -> None:
    averaged = train(make_net(), data, CONFIG)
    plain = train(make_net(), data, replace(CONFIG, ema_decay=0.0))
    for name in ("conv.weight", "norm.running_mean", "norm.running_var"):
        assert not torch.equal(averaged.model.state_dict()[name], plain.model.state_dict()[name])
    assert averaged.losses == plain.losses, "the average does not feed back into training"


def test_the_learning_rate_rises_by_the_step_and_falls_as_a_cosine(data: Data) -> None:
    config = replace(CONFIG, epochs=10, warmup_epochs=2)
    run = _Run(make_net(), data, config, None)
    rates = []
    for epoch in range(10):
        for images, labels in run.batches(epoch, 0):
            run.learn(images, labels, None)
            rates.append(run.optimizer.param_groups[0]["lr"])
    low, peak = LOWEST_LR * config.lr, config.lr
    rise = [low + (peak - low) * step / 12 for step in range(12)]
    fall = [low + (peak - low) * (1 + math.cos(math.pi * step / 48)) / 2 for step in range(48)]
    assert rates == pytest.approx(rise + fall)


def test_norms_biases_and_what_the_model_spares_do_not_decay(data: Data) -> None:
    class Sparing(Net):
        def no_weight_decay(self) -> set[str]:
            return {"head.weight"}

    decaying, still = Sparing(), Sparing()
    for net, decay in ((decaying, 50.0), (still, 0.0)):
        net.load_state_dict(make_net().state_dict())
        # One step at the lowest rate: what decay does is all that can differ.
        config = replace(CONFIG, epochs=1, batch_size=50, warmup_epochs=0, weight_decay=decay)
        train(net, data, config)
    differing = {
        name
        for name, value in decaying.state_dict().items()
        if not torch.equal(value, still.state_dict()[name])
    }
    assert differing == {"conv.weight"}


@pytest.mark.parametrize("augment", [Augment(), Augment(mixup=0.3, cutmix=1.0)])
def test_the_augmentation_can_be_set(data: Data, augment: Augment) -> None:
    own = train(make_net(), data, CONFIG)
    other = train(make_net(), data, replace(CONFIG, augment=augment), teacher=make_net(2))
    assert not same(own.model, other.model)
    assert math.isfinite(other.score.loss)


def test_a_timm_model_is_scored_by_its_new_weights(data: Data) -> None:
    net = timm.create_model("levit_conv_128s", num_classes=4, img_size=32)
    larger = replace(
        data,
        image_size=32,
        splits={
            name: Split.of(
                name,
                split.images.repeat_interleave(4, -1).repeat_interleave(4, -2),
                split.labels,
                split.indices,
            )
            for name, split in data.splits.items()
        },
    )
    split = larger.split("search")
    evaluate(net.eval(), split, larger)  # fills timm's cache of attention biases
    generator = torch.Generator().manual_seed(0)
    for name, parameter in net.named_parameters():
        if name.endswith("attention_biases"):
            parameter.data += 9 * torch.randn(parameter.shape, generator=generator)
    fresh = timm.create_model("levit_conv_128s", num_classes=4, img_size=32)
    fresh.load_state_dict(net.state_dict())
    assert evaluate(net.eval(), split, larger) == evaluate(fresh, split, larger)


def test_evaluation_leaves_the_mode_and_does_not_depend_on_the_batch_size(data: Data) -> None:
    net = make_net()
    net.train()
    first = evaluate(net, data.split("search"), data, batch_size=7)
    assert net.training
    second = evaluate(net, data.split("search"), data, batch_size=60)
    assert first.accuracy == second.accuracy
    assert first.loss == pytest.approx(second.loss, rel=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1, but is 0; the default is 40"),
        ({"batch_size": 1}, "batch_size must be at least 2"),
        ({"lr": 0.0}, "lr must be a number above 0"),
        ({"lr": math.nan}, "lr must be a number above 0, but is nan"),
        ({"weight_decay": -1.0}, "weight_decay must be at least 0"),
        ({"warmup_epochs": 40.0}, r"warmup_epochs must be from 0 to below epochs \(40\)"),
        ({"label_smoothing": 1.0}, "label_smoothing must be from 0 to below 1"),
        ({"ema_decay": 1.0}, "ema_decay must be from 0 to below 1"),
        ({"clip_grad": 0.0}, "clip_grad must be above 0, or none"),
        ({"distill_type": "sof"}, "distill_type must be one of soft, hard, but is 'sof'"),
        ({"alpha": 1.5}, "alpha must be from 0 to 1"),
        ({"task_loss_weight": -0.1}, "task_loss_weight must be at least 0"),
        ({"temperature": 0.0}, "temperature must be"),
        ({"checkpoint_steps": 0}, "checkpoint_steps must be at least 1"),
        ({"seed": -1}, "seed must be at least 0"),
    ],
)
def test_an_impossible_setting_says_rule_value_and_default(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        DistillConfig(**settings)


def test_the_configuration_is_read_from_plain_values_with_its_augmentation() -> None:
    config = replace(CONFIG, augment=Augment(area=(0.5, 1.0), flip=0.5))
    assert files.into(DistillConfig, files.to_plain(config), source="test") == config
    with pytest.raises(ConfigError, match=r"augment\.flipp.*'flip'"):
        files.into(DistillConfig, {"augment": {"flipp": 0.5}}, source="test")
    with pytest.raises(ConfigError, match="epochs must be at least 1"):
        files.into(DistillConfig, {"epochs": 0}, source="test")


def test_a_batch_larger_than_the_train_split_is_refused(data: Data) -> None:
    with pytest.raises(ConfigError, match="the 50 images of the train split"):
        train(make_net(), data, replace(CONFIG, batch_size=51))
