"""Hardware-aware architecture search for hybrid vision networks.

The nouns of the public API live here; each is imported when it is first used, so that `import nas`
stays light. `import nas.network` registers the networks with timm; `import nas` does not.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = [
    "Architecture",
    "LatencyTable",
    "NasError",
    "SearchSpace",
    "Study",
    "Target",
    "Winner",
    "__version__",
]

if TYPE_CHECKING:
    from nas.errors import NasError
    from nas.latency.table import LatencyTable
    from nas.manifest import Winner
    from nas.space import Architecture, SearchSpace
    from nas.study import Study
    from nas.target import Target

_HOMES = {
    "Architecture": "nas.space",
    "LatencyTable": "nas.latency.table",
    "NasError": "nas.errors",
    "SearchSpace": "nas.space",
    "Study": "nas.study",
    "Target": "nas.target",
    "Winner": "nas.manifest",
}


def __getattr__(name: str) -> Any:  # Any: whatever the name stands for
    """Import a public name from its home at its first use."""
    if name not in _HOMES:
        raise AttributeError(f"module 'nas' has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return the public names, imported or not."""
    return sorted({*globals(), *__all__})
