"""One seed a run; every stage derives its own from it."""

import hashlib


def stage_seed(seed: int, stage: str) -> int:
    """Return the 32-bit seed of one stage: the first 8 hex digits of sha256("seed/stage")."""
    return int(hashlib.sha256(f"{seed}/{stage}".encode()).hexdigest()[:8], 16)
