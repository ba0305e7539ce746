"""What a runtime is to those that time with it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float32]


class Runner(Protocol):
    """One loaded network with its inputs in place."""

    def run(self) -> None:
        """Do one inference and return when its result is there; allocate nothing that stays."""

    def output(self) -> Values:
        """Return what the network makes of `sample_input` of its input's shape."""


class Runtime(Protocol):
    """One inference library, set up for one Target (its threads, its precision).

    A runtime loads files of the kind it takes (`RuntimeFacts.takes`) and no others. Whatever goes
    wrong in the library comes out as DeviceError, from `load` and from `run` alike.
    """

    def load(self, path: Path, times: int = 1) -> list[Runner]:
        """Return the network in the file so many times, each with memory of its own.

        All are ready to run on random inputs of the network's shape.
        """


def sample_input(shape: Sequence[int], *, seed: int = 0) -> Values:
    """Return the values that every runtime is given for an input of this shape."""
    return np.random.default_rng(seed).standard_normal(tuple(shape), dtype=np.float32)


def first_line(error: Exception) -> str:
    """Return the first line of an error's text that says something."""
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)
