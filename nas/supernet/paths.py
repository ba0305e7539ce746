"""Paths: the architectures that one training step runs, each a function of seed and step."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from nas.seeds import stage_seed
from nas.space import Architecture, SearchSpace
from nas.supernet.choice import kind_genes
from nas.supernet.schedule import Schedule, TrainConfig

Genes = Mapping[str, tuple[Any, ...]]
Numbers = dict[str, Any]  # gene -> option
DRAWN = 64  # candidates of which the nearest to a level is taken


@dataclass(frozen=True, slots=True)
class StepPath:
    """An architecture and why it is run: the largest numbers, the smallest, or random ones."""

    role: str
    architecture: Architecture


def step_paths(space: SearchSpace, schedule: Schedule, step: int) -> tuple[StepPath, ...]:
    """Return the paths of one training step, in the order they are run."""
    each = schedule.config.paths_per_step
    roles = {
        "largest": ("largest",),
        "single": ("random",) * each,
        "sandwich": ("largest", "smallest") + ("random",) * each,
    }[schedule.phase(step)]
    first = schedule.paths_before(step)
    return tuple(
        StepPath(role, drawn_path(space, role, config=schedule.config, draw=first + number))
        for number, role in enumerate(roles)
    )


def drawn_path(space: SearchSpace, role: str, *, config: TrainConfig, draw: int) -> Architecture:
    """Return the path of a role by its number among all paths of a training."""
    level = config.sampling == "level"
    return space.architecture(path_choice(space, role, seed=config.seed, draw=draw, level=level))


def path_choice(
    space: SearchSpace, role: str, *, seed: int, draw: int, level: bool = False
) -> Numbers:
    """Return the genes of one path: its numbers by its role, its kinds by turns.

    The number of mb3d at a stage's end is drawn for every role: it is a question of kinds, and
    more of them is not larger.

    Args:
        space: Where paths come from.
        role: largest, smallest or random.
        seed: With `draw`, all that the path depends on.
        draw: Number of the path.
        level: Draw random numbers near a level of MACs, and not uniformly in each gene.
    """
    genes = space.genes()
    kinds = fair_kinds(space, seed=seed, draw=draw)
    rng = np.random.default_rng(stage_seed(seed, f"path {draw}"))
    picks = rng.integers(0, [len(options) for options in genes.values()])
    random = {
        gene: options[pick] for (gene, options), pick in zip(genes.items(), picks, strict=True)
    }
    if role != "random":
        end = -1 if role == "largest" else 0
        random |= {g: options[end] for g, options in genes.items() if not g.endswith(".tail")}
    elif level:
        tails = {gene: value for gene, value in random.items() if gene.endswith(".tail")}
        random = _near_level(space, tails | kinds, rng)
    return random | kinds


def _near_level(space: SearchSpace, fixed: Numbers, rng: np.random.Generator) -> Numbers:
    """Return numbers whose MACs are near a level, uniform on a log scale between the ends.

    Uniform genes give sums that concentrate in the middle, so that small and large networks are
    hardly trained. Each candidate leans to small or to large numbers as a whole.

    Args:
        space: Where the numbers come from.
        fixed: Genes that are decided; the ends are those of the networks with these.
        rng: Source of randomness.
    """
    genes = space.genes()
    most = np.array([len(options) - 1 for options in genes.values()])
    drawn = rng.binomial(most, rng.random((DRAWN, 1)), size=(DRAWN, len(most)))
    codes = np.concatenate([[0 * most, most], drawn])
    for column, (gene, options) in enumerate(genes.items()):
        if gene in fixed:
            codes[:, column] = options.index(fixed[gene])
    macs = np.log(space.macs_pricer()(codes))
    aim = macs[0] + (macs[1] - macs[0]) * rng.random()
    nearest = 2 + int(np.argmin(np.abs(macs[2:] - aim)))
    (numbers,) = space.decode(codes[nearest : nearest + 1])
    return numbers


def fair_kinds(space: SearchSpace, *, seed: int, draw: int) -> Numbers:
    """Return a kind for each place, so that all are drawn equally often there.

    Draws are counted in cycles as long as there are kinds; within a cycle each place goes through
    its own random permutation of them (strict fairness, FairNAS, arXiv 1907.01845).
    """
    kinds = {}
    for gene, options in kind_genes(space).items():
        cycle, turn = divmod(draw, len(options))
        rng = np.random.default_rng(stage_seed(seed, f"{gene} {cycle}"))
        kinds[gene] = options[int(rng.permutation(len(options))[turn])]
    return kinds


def choice_path(space: SearchSpace, *, seed: int, number: int) -> Numbers:
    """Return the genes of the path of one choice step: random numbers, every position in use.

    Depths are the largest and tails the smallest, so that every logit has a place in it.
    """
    genes = space.genes()
    rng = np.random.default_rng(stage_seed(seed, f"choice path {number}"))
    picks = rng.integers(0, [len(options) for options in genes.values()])
    chosen = {
        gene: options[pick] for (gene, options), pick in zip(genes.items(), picks, strict=True)
    }
    chosen |= {gene: options[-1] for gene, options in genes.items() if gene.endswith(".depth")}
    chosen |= {gene: options[0] for gene, options in genes.items() if gene.endswith(".tail")}
    return chosen
