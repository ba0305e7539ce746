"""The guard: a network of many weights whose time tells whether others fill the shared cache.

The reference kernel (worker.py) lives in a core's own caches and sees nothing of neighbours who use
the cache that all cores share, which slows down networks of some megabytes for minutes.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

from nas.block import Mlp
from nas.latency.compose import Workshop, weight_bytes
from nas.latency.recipes import Chain, lead_in
from nas.target import RUNTIMES, Target

GUARD = "(guard)"
# 4.7 million weights, 19 MB in fp32, and little work. Beside neighbours who slowed networks of 9
# to 17 MB by 10 % it took 25 % longer, one of 8 MB only 1 % (LOG.md).
GUARD_CHAIN: Chain = (lead_in(768, 2), Mlp(resolution=2, channels=768, hidden=3072))
GUARDED_BYTES = 2_000_000  # of weights: smaller networks run from a core's own caches


def has_caches(target: Target) -> bool:
    """Return whether networks run on a processor, whose caches others fill and we can empty."""
    facts = RUNTIMES.get(target.runtime)
    return facts is not None and not facts.accelerator


def needs_guard(target: Target, sizes: Iterable[int]) -> bool:
    """Return whether any of networks with so many bytes of weights needs the shared cache."""
    return has_caches(target) and any(size >= GUARDED_BYTES for size in sizes)


def with_guard(chains: Mapping[str, Chain], target: Target) -> dict[str, Chain]:
    """Return the chains by name, and the guard beside them where one of them needs it."""
    sizes = (sum(block.bytes for block in chain) for chain in chains.values())
    guard = {GUARD: GUARD_CHAIN} if needs_guard(target, sizes) else {}
    return {**chains, **guard}


def guard_file(network: Path, target: Target, folder: Path) -> Path | None:
    """Write the guard as a target's runtime takes it; None where a network needs none.

    Args:
        network: What is timed: an ONNX file or a timm folder.
        target: On what.
        folder: Where to write: "0.onnx" or "0.json", and files named after parts.

    Raises:
        StorageError: the folder is full or cannot be written.
    """
    if not needs_guard(target, [weight_bytes(network)]):
        return None
    workshop = Workshop(folder, batch=target.batch, takes=target.takes)
    workshop.export([GUARD_CHAIN])
    return workshop.join({GUARD: GUARD_CHAIN}, folder)[GUARD]
