"""Mind: who proposes the next candidate, in memory, never touching a database; what it is given."""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Protocol

from nas.files import canonical_json
from nas.search.rows import PriceChoices
from nas.study import Choice, Genes, Option


@dataclass(frozen=True, slots=True)
class Proposal:
    """One candidate a mind waits to hear about; `ticket` is the mind's own."""

    ticket: int
    choice: Choice


class Mind(Protocol):
    """What proposes candidates.

    A mind may propose anything, infeasible and seen before; the engine refuses and tells it so.
    Every proposal is told exactly once, in the order proposed within a batch. The same seed and
    the same answers give the same proposals, in any process. A mind does no input or output.
    """

    num_starts: int

    def ask(self) -> Proposal:
        """Return the next candidate."""
        ...

    def adopt(self, choice: Choice) -> Proposal:
        """Return a candidate found elsewhere, as if the mind had proposed it."""
        ...

    def tell(self, proposal: Proposal, score: float | None, costs: Mapping[str, float]) -> None:
        """Take the result of a proposal: a score to maximise; None means refused or failed."""
        ...


def whole_key(choice: Choice) -> Hashable:
    """Return what tells a choice from every other: all of it."""
    return canonical_json(dict(choice))


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """What every mind is given: the genes, the budgets, and what to be good at.

    Attributes:
        genes: The options of every gene.
        budgets: {metric: limit}.
        objective: The cost to minimise beside the score; None to look at the score alone.
        seed: Of all that is random.
        price: What candidates cost, for minds that look before they propose.
        batch: How many proposals the engine asks for before it tells the first one's result.
        complete: Makes a choice the candidate that is evaluated; None where it is that already.
        key: What makes two completed candidates the same one.
        lost: Predicted loss of each gene's options, for `slimming`.
    """

    genes: Genes
    budgets: Mapping[str, float]
    objective: str | None
    seed: int
    price: PriceChoices
    batch: int = 1
    complete: Callable[[Choice], Choice] | None = None
    key: Callable[[Choice], Hashable] = whole_key
    lost: Mapping[str, Mapping[Option, float]] | None = None
