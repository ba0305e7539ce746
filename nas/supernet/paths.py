"""Paths: the architectures that one training step runs, each a function of seed and step."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from nas.seeds import stage_seed
from nas.space import Architecture, SearchSpace
from nas.supernet.choice import kind_genes
from nas.supernet.schedule import Schedule

Genes = Mapping[str, tuple[Any, ...]]
Numbers = dict[str, Any]  # gene -> option


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
    seed = schedule.config.seed
    return tuple(
        StepPath(role, space.architecture(path_choice(space, role, seed=seed, draw=first + number)))
        for number, role in enumerate(roles)
    )


def path_choice(space: SearchSpace, role: str, *, seed: int, draw: int) -> Numbers:
    """Return the genes of one path: its numbers by its role, its kinds by turns.

    The number of mb3d at a stage's end is drawn for every role: it is a question of kinds, and
    more of them is not larger.
    """
    genes = space.genes()
    rng = np.random.default_rng(stage_seed(seed, f"path {draw}"))
    picks = rng.integers(0, [len(options) for options in genes.values()])
    random = {
        gene: options[pick] for (gene, options), pick in zip(genes.items(), picks, strict=True)
    }
    if role != "random":
        end = -1 if role == "largest" else 0
        random |= {g: options[end] for g, options in genes.items() if not g.endswith(".tail")}
    return random | fair_kinds(space, seed=seed, draw=draw)


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
