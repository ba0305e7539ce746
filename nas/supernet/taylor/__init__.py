"""Which channels of a supernet matter, and what that is good for.

importance = measure_importance(supernet, covering_paths(space), data)
order(supernet, importance)

path = widest(space, architecture)
tables = inner_dims(space, path, measure_importance(supernet, [path], data))
scales = fit_scales(tables, allocations, increases)

path = fitted_path(space, probabilities)
lost = predicted_losses(space, path, measure_branches(supernet, path, data), probabilities)
losses = measure_losses(supernet, data)  # all of it for a search: a LossTable
"""

from nas.supernet.taylor.branches import (
    Lost,
    branch_slopes,
    fitted_path,
    measure_branches,
    predicted_losses,
)
from nas.supernet.taylor.importance import (
    Importance,
    TaylorConfig,
    covering_paths,
    gated_losses,
    measure_importance,
    sample_gradients,
    unit_gates,
)
from nas.supernet.taylor.losses import LossConfig, measure_losses
from nas.supernet.taylor.order import Orders, order, slot_moves
from nas.supernet.taylor.scales import Scales, fit_lost, fit_scales
from nas.supernet.taylor.tables import InnerDim, InnerNumbers, allocated, inner_dims, widest

__all__ = [
    "Importance",
    "Lost",
    "InnerDim",
    "InnerNumbers",
    "LossConfig",
    "Orders",
    "Scales",
    "TaylorConfig",
    "allocated",
    "branch_slopes",
    "covering_paths",
    "fit_lost",
    "fit_scales",
    "fitted_path",
    "gated_losses",
    "measure_branches",
    "inner_dims",
    "measure_importance",
    "measure_losses",
    "order",
    "predicted_losses",
    "sample_gradients",
    "slot_moves",
    "unit_gates",
    "widest",
]
