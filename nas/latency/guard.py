"""The guard: a network of many weights whose time tells whether others fill the shared cache.

The reference kernel (worker.py) lives in a core's own caches and sees nothing of neighbours who use
the cache that all cores share, which slows down networks of some megabytes for minutes.
"""

from pathlib import Path

from nas.block import Mlp
from nas.latency.compose import Export, Workshop
from nas.latency.recipes import Chain, lead_in
from nas.target import RUNTIMES, Target

GUARD = "(guard)"
# 4.7 million weights, 19 MB in fp32, and little work. Beside neighbours who slowed networks of 9
# to 17 MB by 10 % it took 25 % longer, one of 8 MB only 1 % (LOG.md).
GUARD_CHAIN: Chain = (lead_in(768, 2), Mlp(resolution=2, channels=768, hidden=3072))


def has_caches(target: Target) -> bool:
    """Return whether networks run on a processor, whose caches others fill and we can empty."""
    facts = RUNTIMES.get(target.runtime)
    return facts is not None and not facts.accelerator


def guard_file(target: Target, folder: Path, export: Export | None = None) -> Path | None:
    """Write the guard as a target's runtime takes it; None where networks run on no processor.

    Args:
        target: What it is for.
        folder: Where to write, for this alone.
        export: Writes ONNX files of parts; `nas.network.onnx.parts_to_onnx` by default.

    Raises:
        StorageError: the folder is full or cannot be written.
    """
    if not has_caches(target):
        return None
    workshop = Workshop(folder, export, batch=target.batch, takes=target.takes)
    workshop.export([GUARD_CHAIN])
    return workshop.join({GUARD: GUARD_CHAIN}, folder)[GUARD]
