"""RankConfig, and the networks `nas rank` trains alone: as many from each band of MACs."""

from dataclasses import dataclass, field

import numpy as np

from nas.errors import ConfigError
from nas.space import Architecture, SearchSpace
from nas.winner.distill import DistillConfig

DRAWN_AT_ONCE = 2048
ROUNDS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class RankConfig:
    """How the supernet's ranking is checked.

    Attributes:
        bands: Bands of MACs, equal on a log scale, from the smallest network to the largest.
        per_band: Networks of each band.
        twice: How many of them are trained a second time, for the noise of the truth.
        max_macs: The largest network that is drawn; None is the space's own.
        resamples: Of the bootstrap.
        train: How each is trained alone, from random weights and without a teacher.
    """

    bands: int = 4
    per_band: int = 4
    twice: int = 4
    max_macs: int | None = None
    resamples: int = 2000
    train: DistillConfig = field(
        default_factory=lambda: DistillConfig(epochs=12, lr=3e-3, warmup_epochs=1.0)
    )

    def __post_init__(self) -> None:
        for name in ("bands", "per_band", "resamples"):
            if not 1 <= getattr(self, name) <= 100_000:
                raise ConfigError(f"{name} must be 1 to 100000, but is {getattr(self, name)}.")
        if self.networks < 3:
            raise ConfigError(
                f"bands x per_band must be at least 3 networks to be ranked, but is "
                f"{self.bands} x {self.per_band}."
            )
        if not 0 <= self.twice <= self.networks:
            raise ConfigError(
                f"twice must be 0 to the {self.networks} networks there are, but is {self.twice}."
            )

    @property
    def networks(self) -> int:
        """How many networks there are."""
        return self.bands * self.per_band


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """One network of the sample: its architecture, its MACs, and the number of its band."""

    architecture: Architecture
    macs: int
    band: int


def draw(space: SearchSpace, config: RankConfig, *, seed: int) -> tuple[Drawn, ...]:
    """Draw different networks, the same number from each band, in the order of their MACs.

    Inside a band they are drawn as `SearchSpace.sample` does: each network leans towards small
    options or large ones by a random share of its own.

    Raises:
        ConfigError: a band holds too few networks, or max_macs is below the smallest network.
    """
    price = space.macs_pricer()
    ends = space.encode([space.choice(space.smallest()), space.choice(space.largest())])
    low, high = price(ends)
    if config.max_macs is not None:
        high = min(high, config.max_macs)
    if high <= low:
        raise ConfigError(
            f"max_macs must be above the {low:,.0f} MACs of {space.name}'s smallest network, but "
            f"is {config.max_macs:,}."
        )
    edges = np.geomspace(low, high * (1 + 1e-9), config.bands + 1)
    options = np.array([len(values) for values in space.genes().values()], dtype=np.int64)
    rng = np.random.default_rng(seed)
    found: list[dict[str, Drawn]] = [{} for _ in range(config.bands)]
    for _ in range(ROUNDS):
        codes = rng.binomial(
            options - 1, rng.random((DRAWN_AT_ONCE, 1)), size=(DRAWN_AT_ONCE, len(options))
        )
        macs = price(codes)
        places = np.searchsorted(edges, macs, side="right") - 1
        for band, kept in enumerate(found):
            for row in np.flatnonzero(places == band):
                if len(kept) == config.per_band:
                    break
                architecture = space.architecture(space.decode(codes[row : row + 1])[0])
                drawn = Drawn(architecture=architecture, macs=int(macs[row]), band=band)
                kept.setdefault(architecture.id, drawn)
        if all(len(kept) == config.per_band for kept in found):
            every = [drawn for kept in found for drawn in kept.values()]
            return tuple(sorted(every, key=lambda drawn: (drawn.macs, drawn.architecture.id)))
    band = next(band for band, kept in enumerate(found) if len(kept) < config.per_band)
    raise ConfigError(
        f"each band must hold {config.per_band} networks, but band {band + 1} of {config.bands} "
        f"({edges[band] / 1e6:.3g} to {edges[band + 1] / 1e6:.3g} MMACs) gave "
        f"{len(found[band])}. Ask for fewer bands or networks a band."
    )


def repeated(networks: int, twice: int) -> tuple[int, ...]:
    """Return the numbers of the networks that are trained twice, spread evenly over all."""
    return tuple(sorted({round(place) for place in np.linspace(0, networks - 1, twice)}))
