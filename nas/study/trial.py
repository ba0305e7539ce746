"""One evaluated candidate as a light value, and how it is written as an Optuna trial."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias

from nas.errors import ConfigError
from nas.study.metrics import is_latency

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

Scalar: TypeAlias = None | bool | int | float | str
Option: TypeAlias = Any  # a Scalar or a tuple of them; Any because a space's options are mixed
Choice: TypeAlias = Mapping[str, Option]
Genes: TypeAlias = Mapping[str, tuple[Option, ...]]

COMPLETE = "COMPLETE"
FAIL = "FAIL"
_OWN_ATTRS = ("architecture", "architecture_id", "loss", "evaluation_s", "attempt", "reason")
_EMPTY: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """A cost measured on the device after the search; `ci_high` bounds its median from above."""

    measured: float
    ci_high: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One evaluated candidate. A failed one (state FAIL) has a reason and no accuracy.

    `costs` are what was predicted before the evaluation, by metric; `measured` is what was
    measured afterwards, if anything; `extra` is whatever else the evaluation returned.
    """

    number: int
    state: str
    choice: Choice
    costs: Mapping[str, float]
    accuracy: float | None = None
    loss: float | None = None
    architecture: Mapping[str, Any] | None = None
    architecture_id: str | None = None
    evaluation_s: float | None = None
    attempt: int = 1
    reason: str | None = None
    extra: Mapping[str, Any] = field(default_factory=lambda: _EMPTY)
    measured: Mapping[str, Measurement] = field(default_factory=lambda: _EMPTY)
    created_at: datetime | None = None

    @property
    def is_complete(self) -> bool:
        """Return whether the evaluation gave an accuracy."""
        return self.state == COMPLETE


@dataclass(frozen=True, slots=True, kw_only=True)
class NewTrial:
    """What is known of a candidate when it is added; `accuracy` None means that it failed."""

    choice: Choice
    costs: Mapping[str, float]
    accuracy: float | None
    loss: float | None
    reason: str | None
    evaluation_s: float | None
    attempt: int
    attrs: Mapping[str, Any]


# ---------------------------------------------------------------- genes and options
def check_genes(genes: Mapping[str, Sequence[Option]]) -> dict[str, tuple[Option, ...]]:
    """Return genes with tuples of options, checked.

    Raises:
        ConfigError: a gene without options, an option twice, or one that JSON has no word for.
    """
    checked: dict[str, tuple[Option, ...]] = {}
    for gene, options in genes.items():
        if not isinstance(gene, str) or isinstance(options, str):
            raise ConfigError(f"a gene is a name with a tuple of options, but {gene!r} is not.")
        checked[gene] = tuple(
            tuple(option) if isinstance(option, list) else option for option in options
        )
        if not checked[gene]:
            raise ConfigError(f"gene {gene!r} has no options; leave it out or give it some.")
        words = [encode_option(option, gene=gene) for option in checked[gene]]
        if any(word in words[:index] for index, word in enumerate(words)):
            raise ConfigError(f"gene {gene!r} has an option twice: {checked[gene]!r}.")
    return checked


def encode_option(option: Option, *, gene: str) -> Scalar:
    """Return an option as Optuna can store it: a tuple becomes its JSON text "[7, 5, 3]".

    Raises:
        ConfigError: the option is not plain JSON.
    """
    parts = option if isinstance(option, tuple | list) else (option,)
    for part in parts:
        if not isinstance(part, bool | int | float | str | None) or (
            isinstance(part, float) and not math.isfinite(part)
        ):
            raise ConfigError(
                f"options are plain values or tuples of them, but {gene!r} has {option!r}."
            )
    return json.dumps(list(parts)) if isinstance(option, tuple | list) else option


class Codec:
    """The options of every gene in Optuna's words, and back; a tuple is stored as text."""

    def __init__(self, genes: Genes) -> None:
        from optuna.distributions import CategoricalDistribution

        self.genes = genes
        self.distributions: dict[str, CategoricalDistribution] = {}
        self._words: dict[str, dict[Option, Scalar]] = {}
        self._options: dict[str, dict[Scalar, Option]] = {}
        for gene, options in genes.items():
            words = tuple(encode_option(option, gene=gene) for option in options)
            self.distributions[gene] = CategoricalDistribution(words)
            self._words[gene] = dict(zip(options, words, strict=True))
            self._options[gene] = dict(zip(words, options, strict=True))

    def encode(self, choice: Choice) -> dict[str, Scalar]:
        """Return a choice in Optuna's words.

        Raises:
            ConfigError: a gene is missing or unknown, or its option is not one of its own.
        """
        if choice.keys() != self.genes.keys():
            odd = sorted(choice.keys() ^ self.genes.keys())
            raise ConfigError(f"a choice names every gene once, but differs in {', '.join(odd)}.")
        words = {}
        for gene, known in self._words.items():
            option = choice[gene]
            option = tuple(option) if isinstance(option, list) else option
            if option not in known:
                raise ConfigError(f"{gene} must be one of {self.genes[gene]}, but is {option!r}.")
            words[gene] = known[option]
        return words

    def decode(self, words: Mapping[str, Any]) -> dict[str, Option]:
        """Return the choice that these words stand for, its genes in their own order."""
        return {gene: known[words[gene]] for gene, known in self._options.items()}


# ---------------------------------------------------------------- to Optuna and back
def to_optuna(
    new: NewTrial, codec: Codec, *, objective: str, budgets: Mapping[str, float]
) -> "FrozenTrial":
    """Return a finished Optuna trial: two values, constraints named as the budgets, attributes."""
    from optuna.trial import TrialState, create_trial

    failed = new.accuracy is None
    attrs: dict[str, Any] = {name: _number(name, value) for name, value in new.costs.items()}
    attrs |= {
        "loss": new.loss,
        "reason": new.reason,
        "evaluation_s": new.evaluation_s,
        "attempt": new.attempt,
    }
    attrs |= {name: _plain(value) for name, value in new.attrs.items()}
    trial = create_trial(
        state=TrialState.FAIL if failed else TrialState.COMPLETE,
        values=None if new.accuracy is None else [new.accuracy, new.costs[objective]],
        params=codec.encode(new.choice),
        distributions=dict(codec.distributions),
        user_attrs={name: value for name, value in attrs.items() if value is not None},
        constraints={name: new.costs[name] - limit for name, limit in budgets.items()},
    )
    if new.evaluation_s is not None and trial.datetime_complete is not None:
        trial.datetime_start = trial.datetime_complete - timedelta(seconds=new.evaluation_s)
    return trial


def from_optuna(
    trial: "FrozenTrial",
    codec: Codec,
    metrics: Sequence[str],
    measured: Mapping[str, Measurement],
) -> Trial:
    """Return our row of a finished Optuna trial."""
    attrs = trial.user_attrs
    done = trial.datetime_complete
    return Trial(
        number=trial.number,
        state=trial.state.name,
        choice=codec.decode(trial.params),
        costs={name: attrs[name] for name in metrics if name in attrs},
        accuracy=trial.values[0] if trial.state.name == COMPLETE else None,
        **{name: attrs[name] for name in _OWN_ATTRS if name in attrs},
        extra={
            name: value
            for name, value in attrs.items()
            if name not in metrics and name not in _OWN_ATTRS
        },
        measured=measured,
        # Optuna hands out naive local times.
        created_at=None if done is None else done.astimezone(UTC),
    )


def _number(metric: str, value: float) -> float | int:
    """Return counts as integers, so that SQL and people see 3000000 and not 3000000.0."""
    number = float(value)
    return int(number) if number.is_integer() and not is_latency(metric) else number


def _plain(value: Any) -> Any:  # Any: whatever an evaluation returns
    """Return numpy scalars as Python's, and everything else as it is."""
    return value.item() if hasattr(value, "item") and not isinstance(value, dict) else value
