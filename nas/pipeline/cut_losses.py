"""What cutting inside one trained network costs in loss: by fitted importance, or measured."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from nas.block import Block
from nas.data import Data
from nas.network import NasHybrid
from nas.pipeline.cuts import Cuts
from nas.pipeline.inner import option_losses
from nas.pipeline.run import Progress
from nas.space.loss_table import LossTable
from nas.supernet.evaluate import first_images
from nas.supernet.gates import Indices
from nas.supernet.taylor import Importance, fit_lost
from nas.supernet.taylor.alone import channel_orders, cut, kept_importance, refit
from nas.winner.score import evaluate

# What losses are measured on: fitting has a split of its own, ranking has the search split.
SPLIT = "choice"
IMAGES = 2048  # of it, at most
ALLOCATIONS = 24  # random ones that scales are fitted on


class Pruner:
    """One trained network whose channels have an order, and what smaller versions of it lose.

    Args:
        model: Trained; it is not changed.
        data: Statistics are fitted on its train split, losses measured on its choice split.
        importance: Of the model's inner channels.
    """

    def __init__(self, model: NasHybrid, data: Data, importance: Importance) -> None:
        self.model, self.data = model, data
        self.orders: dict[str, Indices] = channel_orders(importance)
        self._kept = kept_importance(model, importance)
        self._images = first_images(data.split(SPLIT), IMAGES)
        self._known: dict[tuple[Block, ...], float] = {}

    def pruned(self, blocks: tuple[Block, ...]) -> tuple[NasHybrid, bool]:
        """Return the network with these blocks, and whether its statistics were fitted anew.

        Of the statistics that the kept channels had and those fitted to the smaller network, the
        ones with the lower loss stay. A network that loses nothing stays as it is.
        """
        as_cut = cut(self.model, blocks, self.orders)
        if blocks == self.model.blocks_spec:
            return as_cut, False
        fitted = cut(self.model, blocks, self.orders)
        refit(fitted, self.data)
        losses = [evaluate(each, self._images, self.data).loss for each in (as_cut, fitted)]
        return (fitted, True) if losses[1] < losses[0] else (as_cut, False)

    def uncut(self) -> NasHybrid:
        """Return the network as it is, with statistics fitted as those of smaller ones are."""
        fitted = cut(self.model, self.model.blocks_spec, self.orders)
        refit(fitted, self.data)
        return fitted

    def loss(self, blocks: tuple[Block, ...]) -> float:
        """Return the loss in nats of the network with these blocks, statistics fitted to it."""
        if blocks not in self._known:
            smaller = cut(self.model, blocks, self.orders)
            refit(smaller, self.data)
            self._known[blocks] = evaluate(smaller, self._images, self.data).loss
        return self._known[blocks]

    # ------------------------------------------------------------ losses of options
    def losses(
        self, cuts: Cuts, method: str, *, seed: int, progress: Progress
    ) -> tuple[list[list[float]], Mapping[str, float]]:
        """Return the predicted loss in nats of each option of each spot, and how well that fits.

        Args:
            cuts: The spots.
            method: "taylor": the importance that an option drops, times a scale for its kind of
                part, fitted on random allocations; "sensitivity": each option by itself,
                measured.
            seed: What allocations are drawn with.
            progress: Told (done, total, text).
        """
        if method == "sensitivity":
            return self._measured(cuts, progress), {}
        table = LossTable(space="", method=method, dims=self._kept)
        table = self._scaled(cuts, table, seed=seed, progress=progress)
        return self._predicted(cuts, table), table.fit

    def _predicted(self, cuts: Cuts, table: LossTable) -> list[list[float]]:
        heads = {place: int(getattr(block, "heads", 0)) for place, block in cuts.places}
        return [option_losses(table, place, part, heads=heads[place]) for place, part in cuts.spots]

    def _measured(self, cuts: Cuts, progress: Progress) -> list[list[float]]:
        whole = self.loss(cuts.blocks)
        count = sum(len(part.options) for _, part in cuts.spots)
        found: list[list[float]] = []
        done = 0
        for spot, (place, part) in enumerate(cuts.spots):
            own = []
            for option in range(len(part.options)):
                progress(done, count, place)
                picked = [0] * len(cuts.spots)
                picked[spot] = option
                own.append(max(0.0, self.loss(cuts.applied(picked)) - whole))
                done += 1
            found.append(own)
        progress(count, count, "every option measured")
        return found

    def _scaled(self, cuts: Cuts, table: LossTable, *, seed: int, progress: Progress) -> LossTable:
        """Return the table with scales from sums of importance to nats (`fit_lost`)."""
        rng = np.random.default_rng(seed)
        whole = self.loss(cuts.blocks)
        unscaled = self._predicted_by_kind(cuts, table)
        lost, increases = [], []
        for turn, share in enumerate(np.linspace(0.2, 1.0, ALLOCATIONS)):
            progress(turn, ALLOCATIONS, "losses of random cuts")
            picked = [
                int(rng.integers(len(part.options))) if rng.random() < share else 0
                for _, part in cuts.spots
            ]
            lost.append(unscaled(picked))
            increases.append(self.loss(cuts.applied(picked)) - whole)
        progress(ALLOCATIONS, ALLOCATIONS, "scales fitted")
        fitted = fit_lost(lost, increases)
        scales = dict(fitted.by_kind)
        if not any(scales.values()):  # nothing that was dropped mattered
            scales = {}
        fit = {"r2": fitted.r2, "r2_fitted": fitted.r2_fitted, "spearman": fitted.spearman}
        return LossTable(
            space="", method=table.method, scales=scales, dims=table.dims,
            fit={name: value for name, value in fit.items() if np.isfinite(value)},
        )  # fmt: skip

    def _predicted_by_kind(
        self, cuts: Cuts, table: LossTable
    ) -> Callable[[Sequence[int]], dict[str, float]]:
        """Return what tells the importance that an allocation drops, by kind of dimension."""
        present = {place: int(getattr(block, "heads", 0)) for place, block in cuts.places}

        def by_kind(picked: Sequence[int]) -> dict[str, float]:
            found: dict[str, float] = {}
            for (place, part), option in zip(cuts.spots, picked, strict=True):
                numbers, most = dict(part.options[option]), dict(part.options[0])
                heads = numbers.get("heads", present[place])
                for field, number in numbers.items():
                    name = f"{place}.{field}"
                    kind = table.dims[name].kind
                    lost = table.lost(name, number, most=most[field], heads=heads)
                    found[kind] = found.get(kind, 0.0) + lost
            return found

        return by_kind
