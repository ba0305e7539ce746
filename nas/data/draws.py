"""Random numbers without a generator: each is a function of what it is for, and of nothing else.

A draw is the counter-based hash of (seed, purpose, epoch, index, column) by the finaliser of
SplitMix64 (Steele, Lea, Flood, OOPSLA 2014), chained. So an image gets the same augmentation
whichever batch, process or position it is in, and any epoch can be entered in the middle.
"""

import numpy as np
from numpy.typing import NDArray

WORD = 2**64 - 1
GOLDEN = np.uint64(0x9E3779B97F4A7C15)
ORDER, AUGMENT, MIX = 1, 2, 3  # purposes


def _mix(word: NDArray[np.uint64]) -> NDArray[np.uint64]:
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return word ^ (word >> np.uint64(31))


def words(
    seed: int, purpose: int, epoch: int, indices: NDArray[np.int64], columns: int
) -> NDArray[np.uint64]:
    """Return uint64 draws of shape (n, columns) for n indices; each column is its own stream."""
    word = np.zeros(1, dtype=np.uint64)
    for step in (seed, purpose, epoch):
        word = _mix(word + GOLDEN + np.array([step & WORD], dtype=np.uint64))
    word = _mix(word + GOLDEN + indices.astype(np.uint64))
    return _mix(word[:, None] + GOLDEN * np.arange(1, columns + 1, dtype=np.uint64)[None, :])


def uniform(
    seed: int, purpose: int, epoch: int, indices: NDArray[np.int64], columns: int
) -> NDArray[np.float64]:
    """Return draws of [0, 1), of shape (n, columns)."""
    bits = words(seed, purpose, epoch, indices, columns) >> np.uint64(11)
    return bits.astype(np.float64) * 2.0**-53


def order(seed: int, epoch: int, indices: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the positions 0..n-1 in the random order of this epoch, shape (n,)."""
    return np.argsort(words(seed, ORDER, epoch, indices, 1)[:, 0], kind="stable").astype(np.int64)
