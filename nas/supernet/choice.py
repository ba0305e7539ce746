"""Choice: which kind of block suits each place, learnt by hard Gumbel-softmax samples."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from nas.block import Block
from nas.space import Architecture, SearchSpace

Option = str | int


@dataclass(frozen=True, slots=True)
class Spot:
    """One place of a path: a single block, or the candidates of a gene, each with its slot."""

    gene: str | None
    candidates: tuple[tuple[str, Block], ...]


class Choice:
    """One vector of logits for each gene that decides a kind: front positions and transitions.

    The logits belong to no device (Target): they say what helps accuracy, not what it costs.

    Attributes:
        options: Gene -> its kinds, in the order of its logits.
        logits: Gene -> logits of shape (kinds,), on the CPU; all zero at first.
    """

    def __init__(self, space: SearchSpace) -> None:
        self.options = kind_genes(space)
        self.logits = {
            gene: torch.zeros(len(options), requires_grad=True)
            for gene, options in self.options.items()
        }

    def sample(self, generator: torch.Generator, *, temperature: float) -> dict[str, Tensor]:
        """Draw one kind for each gene: one-hot weights with the gradient of soft ones.

        The kind of largest logit + Gumbel noise is drawn with the probability softmax(logits)
        (Jang et al., arXiv 1611.01144). The noise is -log(-log U) with U uniform: EfficientFormer
        (arXiv 2206.01191, section 3.3) prints U(0, 1) itself, which is no Gumbel variable and
        would not draw from the softmax. Straight-through: weights are 0 and 1, their gradient is
        that of softmax((logits + noise) / temperature), so every logit gets one.

        Args:
            generator: Source of randomness, on the CPU.
            temperature: Above 0; low ones give large, noisy gradients to close calls only.
        """
        weights = {}
        for gene, logits in self.logits.items():
            uniform = torch.rand(len(logits), generator=generator, dtype=torch.float64)
            tiny = torch.finfo(torch.float64).tiny
            noise = -(-uniform.clamp_min(tiny).log()).clamp_min(tiny).log()
            soft = ((logits + noise.float()) / temperature).softmax(0)
            hard = torch.zeros_like(soft).scatter(0, soft.argmax(0, keepdim=True), 1.0)
            weights[gene] = hard + (soft - soft.detach())
        return weights

    def probabilities(self) -> dict[str, dict[Option, float]]:
        """Return {gene: {kind: probability}}."""
        return {
            gene: dict(zip(self.options[gene], logits.detach().softmax(0).tolist(), strict=True))
            for gene, logits in self.logits.items()
        }

    def state_dict(self) -> dict[str, Tensor]:
        """Return {gene: logits}."""
        return {gene: logits.detach() for gene, logits in self.logits.items()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state_dict` returned, for the same genes."""
        for gene, logits in self.logits.items():
            logits.copy_(state[gene])


def kind_genes(space: SearchSpace) -> dict[str, tuple[Option, ...]]:
    """Return the genes that decide the kind of a block: positions in front, and transitions."""
    return {
        gene: options for gene, options in space.genes().items() if gene.endswith((".by", ".kind"))
    }


def spots(space: SearchSpace, choice: Mapping[str, object]) -> tuple[Spot, ...]:
    """Return the path of a choice with every kind there could be at each place of it.

    Args:
        space: The space.
        choice: Widths, depths and inner numbers of the path; its kinds do not matter.
    """
    genes = kind_genes(space)
    most = max((len(options) for options in genes.values()), default=1)
    paths = []
    for number in range(most):
        kinds = {gene: options[number % len(options)] for gene, options in genes.items()}
        paths.append(_walk(space, space.architecture({**choice, **kinds})))
    found = []
    for versions in zip(*paths, strict=True):
        candidates = dict(versions)  # the same slot in several versions is one candidate
        place = versions[0][0].rpartition(".")[0]
        gene = next((g for g in (place, f"{place}.kind") if g in genes), None)
        ordered = sorted(candidates.items(), key=lambda item: _rank(genes, gene, item[0]))
        found.append(Spot(gene, tuple(ordered)))
    return tuple(found)


def _walk(space: SearchSpace, architecture: Architecture) -> list[tuple[str, Block]]:
    return list(zip(space.slots(architecture), space.blocks(architecture), strict=True))


def _rank(genes: Mapping[str, tuple[Option, ...]], gene: str | None, slot: str) -> int:
    """Return the place of a slot's kind among the options of its gene."""
    return 0 if gene is None else genes[gene].index(slot.rpartition(".")[2])
