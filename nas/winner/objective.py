"""What a network learns from: the labels, and a teacher's scores of the same images.

Soft distillation is DeiT's (arXiv 2012.12877, section 4), L = (1 - a) CE(s, y) + a T^2 KL(s/T, t/T)
with the divergence averaged over the batch. (The published code of DeiT, EfficientFormer and
EfficientViT divides by batch x classes instead, which makes it as many times weaker as there are
classes.) Hard distillation takes the teacher's best class for a second label. A network with a
distillation head learns the labels with one head and the teacher with the other.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas import checkpoint, files
from nas.data import Data
from nas.errors import ConfigError

KINDS = ("soft", "hard")


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """The loss of a batch.

    Attributes:
        kind: soft or hard.
        task_weight: Weight of the labels where there is a teacher.
        teacher_weight: Weight of the teacher.
        temperature: Softens both sides of soft distillation.
        label_smoothing: Share of each label that is spread over all classes.
    """

    kind: str
    task_weight: float
    teacher_weight: float
    temperature: float
    label_smoothing: float

    def __call__(
        self, output: Tensor | tuple[Tensor, Tensor], labels: Tensor, taught: Tensor | None
    ) -> Tensor:
        """Return the loss, a scalar.

        Args:
            output: Scores of shape (n, classes), or the pair (scores, distilled scores).
            labels: Classes of shape (n,), or soft labels of shape (n, classes).
            taught: The teacher's scores of shape (n, classes); None for the labels alone.
        """
        scores, distilled = output if isinstance(output, tuple) else (output, output)
        task = F.cross_entropy(scores, labels, label_smoothing=self.label_smoothing)
        if taught is None:
            return task
        if self.kind == "hard":
            teaching = F.cross_entropy(distilled, taught.argmax(dim=1))
        else:
            teaching = self.temperature**2 * F.kl_div(
                F.log_softmax(distilled / self.temperature, dim=1),
                F.log_softmax(taught / self.temperature, dim=1),
                reduction="batchmean",
                log_target=True,
            )
        return self.task_weight * task + self.teacher_weight * teaching


class Teacher(nn.Module):
    """A trained network that scores a student's batches, in its own normalisation and size.

    Args:
        model: Any classifier with the classes of `data`. A timm model's `pretrained_cfg` says its
            mean, standard deviation and image size; another one is fed what the student is.
        data: The student's images.
    """

    def __init__(self, model: nn.Module, data: Data) -> None:
        super().__init__()
        config: dict[str, Any] = getattr(model, "pretrained_cfg", None) or {}
        mean, std = config.get("mean") or data.mean, config.get("std") or data.std
        self.model = model
        self.size = int((config.get("input_size") or (data.image_size,))[-1])
        self.num_classes = data.num_classes
        # Student's (p - m) / s to the teacher's (p - M) / S: one factor and one offset a channel.
        own, other = (
            torch.tensor(pair, dtype=torch.float32) for pair in ((mean, std), (data.mean, data.std))
        )
        factor = other[1] / own[1]
        offset = (other[0] - own[0]) / own[1]
        self.register_buffer("factor", factor[:, None, None], persistent=False)
        self.register_buffer("offset", offset[:, None, None], persistent=False)
        self.is_same = bool((own == other).all())
        self.eval()

    @property
    def digest(self) -> str:
        """Return the sha256 of the weights and of how images are shown to them."""
        shown = [self.size, self.get_buffer("factor").tolist(), self.get_buffer("offset").tolist()]
        return files.digest_json([checkpoint.digest_tensors(self.model.state_dict()), shown])

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Return scores of shape (n, classes) of images normalised for the student.

        Raises:
            ConfigError: the teacher has other classes than the data.
        """
        if not self.is_same:
            images = images * self.get_buffer("factor") + self.get_buffer("offset")
        if images.shape[-1] != self.size:
            images = F.interpolate(
                images, size=(self.size, self.size), mode="bicubic", antialias=True
            )
        scores: Tensor = self.model(images)
        if scores.shape[1:] != (self.num_classes,):
            raise ConfigError(
                f"a teacher must have the {self.num_classes} classes of the data, but this one "
                f"gives {tuple(scores.shape[1:])}. Train one on this data, as `nas teach` does."
            )
        return scores
