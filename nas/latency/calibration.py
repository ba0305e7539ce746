"""Calibration: what sums of entries become in one space, and the formula for it."""

import math
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np
import numpy.typing as npt

from nas.block import Block

MAX_MS = 1e6
AFFINE, PARTS = "affine", "parts"
COLD, MS_PER_MB, KNEE_MB = "cold", "ms_per_mb", "knee_mb"
FAR_MS_PER_MB, FAR_KNEE_MB = "far_ms_per_mb", "far_knee_mb"
IN_MS = ("constant", MS_PER_MB, FAR_MS_PER_MB)  # coefficients that are times, not shares of entries
SHARPNESS = 6  # of the knee: how suddenly a network stops to fit
PART_MB = 0.02  # what a part's code, kernels and tensors take beside its weights

Costs = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What a sum of entries becomes in one space, in ms; `coefficients` say how.

    constant + scale * sum; where there is a `scale_<kind>`, parts of that kind have that one, and
    an entry in `factors` is multiplied by its own on top. What does not stay in the processor's own
    caches from one run to the next is dearer: with `knee_mb` comes `cold_share(footprint, knee_mb)`
    of what `cold` * (sum of cold_ms - ms) and `ms_per_mb` * megabytes of weights add, one of them
    or both. What does not stay in the shared cache behind those either is dearer again:
    `far_ms_per_mb` * footprint * cold_share(footprint, `far_knee_mb`), both of them or none. The
    form is "affine" with constant and scale alone, else "parts".

    `fitted_on` is {id: measured ms} of the whole architectures it rests on, the space's largest
    among them. `held_out` are relative errors on networks the fit had not seen: `mean` and `worst`,
    and the same of the sum without a fit as `mean_of_sum` and `worst_of_sum`. `by_block` are the
    kinds of block that are priced by entries of their own, not by the sum of their parts.
    """

    form: str
    coefficients: dict[str, float]
    fitted_on: dict[str, float]
    held_out: dict[str, float]
    factors: dict[str, float] = field(default_factory=dict)
    by_block: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        names = self.coefficients.keys()
        scales = [name for name in names if name == "scale" or name.startswith("scale_")]
        adds = {COLD, MS_PER_MB} & names
        memory = adds | {KNEE_MB} if adds else set()
        far = {FAR_MS_PER_MB, FAR_KNEE_MB} & names
        memory |= {FAR_MS_PER_MB, FAR_KNEE_MB} if adds and far else set()
        is_whole = {"constant", "scale", *scales, *memory} == names
        is_plain = names == {"constant", "scale"} and not self.factors
        if not is_whole or self.form != (AFFINE if is_plain else PARTS):
            raise ValueError(
                f"a calibration is {AFFINE} with constant and scale, or {PARTS} with scale_<kind> "
                f"or factors or with {KNEE_MB} and {COLD} or {MS_PER_MB} as well, and then with "
                f"{FAR_KNEE_MB} and {FAR_MS_PER_MB}, but is {self.form} with {sorted(names)}."
            )
        if not all(map(math.isfinite, [*self.coefficients.values(), *self.held_out.values()])):
            raise ValueError(f"coefficients and errors must be numbers: {self.coefficients}.")
        positive = [*scales, *({KNEE_MB, FAR_KNEE_MB} & names)]
        if any(self.coefficients[n] <= 0 for n in positive) or any(
            self.coefficients[name] < 0 for name in adds | far - {FAR_KNEE_MB}
        ):
            raise ValueError(
                f"scales and knees must be above 0 and {COLD} and {MS_PER_MB} not below, not "
                f"{self.coefficients}."
            )
        if not all(0 < factor < math.inf for factor in self.factors.values()):
            raise ValueError(f"factors must be numbers above 0, but are {self.factors!r:.80}.")
        if not all(0 < ms <= MAX_MS for ms in self.fitted_on.values()):
            raise ValueError(f"fitted_on must be times above 0, but is {self.fitted_on!r:.80}.")

    def scaled(self, factor: float) -> Self:
        """Return the same fit of times that are all multiplied by a factor, entries included."""
        rates = {
            name: value * (factor if name in IN_MS else 1.0)
            for name, value in self.coefficients.items()
        }
        fitted_on = {name: factor * ms for name, ms in self.fitted_on.items()}
        return replace(self, coefficients=rates, fitted_on=fitted_on)

    def scale(self, entry: str) -> float:
        """Return what an entry's ms is multiplied by, given its name."""
        common = self.coefficients["scale"]
        scale = self.coefficients.get(f"scale_{kind_of(entry)}", common)
        return scale * self.factors.get(entry, 1.0)

    @property
    def counts_cold(self) -> bool:
        """Whether it needs entries that were measured with cold caches."""
        return COLD in self.coefficients

    @property
    def counts_memory(self) -> bool:
        """Whether a network that does not stay in the caches costs more than the sum of entries."""
        return KNEE_MB in self.coefficients

    @property
    def counts_shared_cache(self) -> bool:
        """Whether a network that does not stay in the shared cache costs more again."""
        return FAR_KNEE_MB in self.coefficients

    def extra_ms(self, cold_ms: Costs, megabytes: Costs) -> Costs:
        """Return what blocks or networks add where nothing of them is cached, arrays of one shape.

        Args:
            cold_ms: Sums of cold_ms - ms over their entries.
            megabytes: Of their weights.
        """
        rates = self.coefficients
        extra: Costs = rates.get(COLD, 0.0) * cold_ms + rates.get(MS_PER_MB, 0.0) * megabytes
        return extra

    def total(self, scaled_ms: Costs, extra_ms: Costs, footprint: Costs) -> Costs:
        """Return calibrated ms of networks, all arrays of one shape.

        Args:
            scaled_ms: Sums of scaled entries.
            extra_ms: What `extra_ms` says of them.
            footprint: Sums of `footprint_mb` over their blocks.
        """
        total_ms: Costs = scaled_ms + self.coefficients["constant"]
        if self.counts_memory:
            total_ms = total_ms + extra_ms * cold_share(footprint, self.coefficients[KNEE_MB])
        if self.counts_shared_cache:
            share = cold_share(footprint, self.coefficients[FAR_KNEE_MB])
            total_ms = total_ms + self.coefficients[FAR_MS_PER_MB] * footprint * share
        return total_ms

    def slopes(self, extra_ms: float, footprint: float) -> tuple[float, float, float]:
        """Return the derivatives of `total` by its three arguments, at one network."""
        rates = self.coefficients
        if not self.counts_memory:
            return 1.0, 0.0, 0.0
        share, slope = _share_and_slope(footprint, rates[KNEE_MB])
        by_mb = extra_ms * slope
        if self.counts_shared_cache:
            far, far_slope = _share_and_slope(footprint, rates[FAR_KNEE_MB])
            by_mb += rates[FAR_MS_PER_MB] * (far + footprint * far_slope)
        return 1.0, share, by_mb


def kind_of(entry: str) -> str:
    """Return the kind of part (or of block) in an entry's name."""
    return entry.partition("_r")[0]


def calibration_name(space: str, image_size: int) -> str:
    """Return what a table calls the calibration of a space at one image size: "tiny@32"."""
    return f"{space}@{image_size}"


def footprint_mb(block: Block) -> float:
    """Return about how much of the caches a block takes."""
    return block.bytes / 1e6 + PART_MB * len(block.parts())


def cold_share(footprint: Costs, knee_mb: float) -> Costs:
    """Return the share (0 to 1) of a network no longer cached when its turn comes again.

    Args:
        footprint: Sums of `footprint_mb`, any shape.
        knee_mb: Where it is a half.
    """
    share: Costs = 1.0 / (1.0 + (knee_mb / np.maximum(footprint, 1e-9)) ** SHARPNESS)
    return share


def _share_and_slope(footprint: float, knee_mb: float) -> tuple[float, float]:
    """Return `cold_share` and its derivative by the footprint."""
    footprint = max(footprint, 1e-9)
    share = float(cold_share(np.array(footprint), knee_mb))
    return share, SHARPNESS * share * (1 - share) / footprint
