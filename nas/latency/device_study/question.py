"""Question: small networks that differ in one thing, and which of them to compare."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from nas.latency.device_study.observation import Row


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One network to time: `make` returns it as a torch module, `shape` is its input's."""

    name: str
    text: str
    shape: tuple[int, int, int]
    make: Callable[[], Any]  # a torch.nn.Module, which this module must not import


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two variants to compare, and what to say then.

    `above` is said where `over` takes longer than `under`, `below` where it takes less, `equal`
    where no difference that matters was found. `{ratio}` stands for how many times the slower
    takes what the faster takes, `{share}` for what of the slower's time the faster does without.
    """

    over: str
    under: str
    subject: str
    above: str
    below: str
    equal: str


def nothing_more(rows: Mapping[str, Row]) -> tuple[str, ...]:
    """Return no further advice."""
    return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What one session measures.

    Args:
        key: Its name in study.json.
        title: A few words.
        asks: The question in a sentence, with its source.
        variants: What is timed together.
        pairs: What is compared, in the order of the advice.
        more: What else the rows say, as sentences.
        is_width_series: The variants differ in channels, at one or more sides: find the stairs.
        profiled: The variant of which the runtime's own profile is read, if any.
    """

    key: str
    title: str
    asks: str
    variants: tuple[Variant, ...]
    pairs: tuple[Pair, ...] = ()
    more: Callable[[Mapping[str, Row]], tuple[str, ...]] = nothing_more
    is_width_series: bool = False
    profiled: str = ""
