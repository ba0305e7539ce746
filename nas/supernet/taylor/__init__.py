"""Which channels of a supernet matter, and what that is good for.

importance = measure_importance(supernet, covering_paths(space), data)
order(supernet, importance)

path = widest(space, architecture)
tables = groups(space, path, measure_importance(supernet, [path], data))
scales = fit_scales(tables, allocations, increases)

path = fitted_path(space, probabilities)
lost = predicted_losses(space, path, measure_branches(supernet, path, data), probabilities)
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
from nas.supernet.taylor.order import Orders, order, slot_moves
from nas.supernet.taylor.scales import Scales, fit_scales
from nas.supernet.taylor.tables import Allocation, Group, allocated, groups, widest

__all__ = [
    "Allocation",
    "Group",
    "Importance",
    "Lost",
    "Orders",
    "Scales",
    "TaylorConfig",
    "allocated",
    "branch_slopes",
    "covering_paths",
    "fit_scales",
    "fitted_path",
    "gated_losses",
    "groups",
    "measure_branches",
    "measure_importance",
    "order",
    "predicted_losses",
    "sample_gradients",
    "slot_moves",
    "unit_gates",
    "widest",
]
