"""Losses are the published formulas, and a teacher sees images as it was trained to."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas.data import Augment, Data
from nas.errors import ConfigError
from nas.winner.distill import DistillConfig
from nas.winner.objective import Objective, Teacher

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)


def some_scores(seed: int) -> Tensor:
    return torch.randn(6, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


SCORES, TAUGHT, DISTILLED = some_scores(1), 3 * some_scores(2), some_scores(3)
LABELS = torch.tensor([0, 1, 2, 3, 4, 0])


def objective(**settings: object) -> Objective:
    config = DistillConfig(label_smoothing=0.0)
    return dataclasses.replace(config, **settings).objective  # type: ignore[arg-type]


def test_without_a_teacher_the_loss_is_smoothed_cross_entropy() -> None:
    loss = objective(label_smoothing=0.1, alpha=0.7)(SCORES, LABELS, None)
    targets = 0.9 * F.one_hot(LABELS, 5) + 0.1 / 5
    expected = -(targets * SCORES.log_softmax(1)).sum(1).mean()
    assert torch.allclose(loss, expected)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_soft_distillation_is_deits_formula_averaged_over_the_batch(temperature: float) -> None:
    loss = objective(alpha=0.3, temperature=temperature)(SCORES, LABELS, TAUGHT)
    student = (SCORES / temperature).softmax(1)
    teacher = (TAUGHT / temperature).softmax(1)
    divergence = (teacher * (teacher.log() - student.log())).sum(dim=1).mean()
    task = F.cross_entropy(SCORES, LABELS)
    assert torch.allclose(loss, 0.7 * task + 0.3 * temperature**2 * divergence)


def test_hard_distillation_takes_the_teachers_class() -> None:
    loss = objective(distill_type="hard", alpha=0.5)(SCORES, LABELS, TAUGHT)
    expected = F.cross_entropy(SCORES, LABELS) + F.cross_entropy(SCORES, TAUGHT.argmax(1))
    assert torch.allclose(loss, 0.5 * expected)


def test_two_heads_learn_the_labels_and_the_teacher_apart() -> None:
    loss = objective(distill_type="hard", alpha=0.25)((SCORES, DISTILLED), LABELS, TAUGHT)
    expected = 0.75 * F.cross_entropy(SCORES, LABELS)
    expected += 0.25 * F.cross_entropy(DISTILLED, TAUGHT.argmax(1))
    assert torch.allclose(loss, expected)


def test_the_weight_of_the_labels_may_be_set_apart() -> None:
    apart = objective(alpha=0.3, task_loss_weight=1.0)(SCORES, LABELS, TAUGHT)
    together = objective(alpha=0.3)(SCORES, LABELS, TAUGHT)
    assert torch.allclose(apart - together, 0.3 * F.cross_entropy(SCORES, LABELS))
    alone = objective(alpha=1.0)(TAUGHT, LABELS, TAUGHT)
    assert torch.allclose(alone, torch.zeros((), dtype=torch.float64)), "the teacher's own scores"


def test_soft_labels_of_mixed_images_are_taken() -> None:
    soft = 0.3 * F.one_hot(LABELS, 5).double() + 0.7 * F.one_hot(LABELS.flip(0), 5).double()
    loss = objective()(SCORES, soft, None)
    expected = 0.3 * F.cross_entropy(SCORES, LABELS) + 0.7 * F.cross_entropy(SCORES, LABELS.flip(0))
    assert torch.allclose(loss, expected)


class Watching(nn.Module):
    """Gives five fixed scores, and keeps what it saw."""

    def __init__(self, **pretrained_cfg: object) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.drop = nn.Dropout(0.5)
        self.pretrained_cfg = pretrained_cfg
        self.seen: Tensor | None = None

    def forward(self, images: Tensor) -> Tensor:
        self.seen = images
        scores: Tensor = self.drop(self.norm(images).mean(dim=(2, 3)) @ torch.ones(3, 5))
        return scores


def make_data() -> Data:
    return Data(
        name="fake",
        image_size=16,
        in_chans=3,
        mean=MEAN,
        std=STD,
        class_names=tuple("abcde"),
        augment=Augment(),
        splits={},
    )


def as_input(pixels: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    return (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


def test_a_teacher_sees_images_in_its_own_normalisation_and_size() -> None:
    model = Watching(mean=(0.1, 0.2, 0.3), std=(0.9, 0.8, 0.7), input_size=(3, 16, 16))
    pixels = torch.rand(4, 3, 16, 16)
    Teacher(model, make_data())(as_input(pixels, MEAN, STD))
    assert model.seen is not None
    assert torch.allclose(model.seen, as_input(pixels, (0.1, 0.2, 0.3), (0.9, 0.8, 0.7)), atol=1e-5)

    larger = Watching(mean=MEAN, std=STD, input_size=(3, 24, 24))
    flat = torch.full((4, 3, 16, 16), 0.25)
    Teacher(larger, make_data())(flat)
    assert larger.seen is not None and larger.seen.shape == (4, 3, 24, 24)
    assert torch.allclose(larger.seen, torch.tensor(0.25), atol=1e-5)


def test_a_teacher_without_a_configuration_sees_what_the_student_sees() -> None:
    model = Watching()
    images = torch.randn(2, 3, 16, 16)
    Teacher(model, make_data())(images)
    assert model.seen is images


def test_a_teacher_neither_learns_nor_changes() -> None:
    model = Watching()
    teacher = Teacher(model, make_data())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images = torch.randn(4, 3, 16, 16)
    first = teacher(images)
    assert torch.equal(first, teacher(images)), "no dropout"
    assert not first.requires_grad
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_the_digest_of_a_teacher_sees_weights_and_normalisation() -> None:
    plain, shown = Watching(), Watching(mean=(0.1,) * 3, std=(0.9,) * 3)
    other = Watching()
    other.norm.weight.data[0] = 2
    digests = {Teacher(model, make_data()).digest for model in (plain, shown, other, Watching())}
    assert len(digests) == 3


def test_a_teacher_of_other_classes_is_refused() -> None:
    data = dataclasses.replace(make_data(), class_names=("a", "b"))
    with pytest.raises(ConfigError, match="must have the 2 classes of the data"):
        Teacher(Watching(), data)(torch.zeros(1, 3, 16, 16))
