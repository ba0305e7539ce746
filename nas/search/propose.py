"""From genes and prices to the next candidate: completed, feasible, and seen by nobody before."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

from nas.search.budgets import meets, resolve_budgets
from nas.search.mind import Mind, Problem, Proposal, whole_key
from nas.search.options import SearchOptions
from nas.search.rows import Price
from nas.search.samplers import SAMPLERS
from nas.search.screen import Pricer, Screen
from nas.study import Choice, Option, Study, check_genes, is_latency

PATIENCE = 24  # refused proposals in a row before the screen looks for a candidate itself
LEAST_PATIENCE = 3
IDENTITY = ("sampler", "mode", "rank_by", "batch")  # options that change what is found


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A completed, feasible, unseen candidate on its way to be evaluated."""

    proposal: Proposal
    choice: Choice
    costs: dict[str, float]
    key: Hashable


class Proposer:
    """Asks a mind, refuses what is infeasible or known, and helps out where the mind is stuck.

    Attributes:
        problem: What is searched.
        mind: Who proposes; whoever has a result tells it.
        ended: Why there is no other candidate; None while there may be.
        num_refused: How many proposals were refused.
    """

    def __init__(
        self, problem: Problem, screen: Screen, price: Pricer, options: SearchOptions
    ) -> None:
        self.problem, self._price = problem, price
        self.mind: Mind = SAMPLERS[options.sampler](problem)
        self.ended: str | None = None
        self.num_refused = 0
        self._screen = screen
        self._seen: set[Hashable] = set()
        near = options.mode == "best"
        self._starts = screen.starts(self.mind.num_starts, near_budget=near)[::-1]
        self._patience = PATIENCE

    def next(self) -> Candidate | None:
        """Return the next candidate; None, and `ended` says why, if there is no other."""
        while self._starts:
            candidate = self._adopt(self._starts.pop())
            if candidate is not None:
                return candidate
        for _ in range(self._patience):
            proposal = self.mind.ask()
            choice, costs, key = self.complete(proposal.choice)
            if self._is_welcome(costs, key):
                self._patience = PATIENCE
                return self._take(proposal, choice, costs, key)
            self.num_refused += 1
            self.mind.tell(proposal, None, costs)
        self._patience = max(LEAST_PATIENCE, self._patience // 2)
        candidate = self._screen.unseen(self._adopt)
        if candidate is None:
            count = len(self._seen)
            self.ended = (
                f"all {count} feasible candidates were evaluated"
                if self._screen.is_exhaustive
                else f"no feasible candidate besides the {count} evaluated was found in many draws"
            )
        return candidate

    def adopt(self, choice: Choice) -> Proposal:
        """Return a candidate from elsewhere as the mind's own; nobody proposes it again."""
        self._seen.add(self.problem.key(choice))
        return self.mind.adopt(choice)

    def is_seen(self, key: Hashable) -> bool:
        """Return whether a candidate was proposed or adopted before."""
        return key in self._seen

    def complete(self, raw: Choice) -> tuple[Choice, dict[str, float], Hashable]:
        """Return a choice as it would be evaluated, its costs and its key."""
        problem = self.problem
        choice = problem.complete(raw) if problem.complete else raw
        costs = {metric: float(values[0]) for metric, values in self._price([choice]).items()}
        return choice, costs, problem.key(choice)

    def _adopt(self, raw: Choice) -> Candidate | None:
        """Return a choice of the screen as a candidate, unless it is infeasible or seen."""
        choice, costs, key = self.complete(raw)
        if not self._is_welcome(costs, key):
            return None
        return self._take(self.mind.adopt(raw), choice, costs, key)

    def _is_welcome(self, costs: Mapping[str, float], key: Hashable) -> bool:
        return key not in self._seen and meets(costs, self.problem.budgets)

    def _take(
        self, proposal: Proposal, choice: Choice, costs: dict[str, float], key: Hashable
    ) -> Candidate:
        self._seen.add(key)
        return Candidate(proposal=proposal, choice=choice, costs=costs, key=key)


def begin(
    genes: Mapping[str, Sequence[Option]],
    price: Price,
    budgets: Mapping[str, float],
    *,
    seed: int,
    options: SearchOptions,
    study: Study,
) -> Proposer:
    """Check what is searched, write it into the study, and return what proposes candidates.

    Raises:
        InfeasibleBudget: no candidate meets the budgets; the study is as it was.
        ConfigError: a setting breaks a rule, or the study was begun with other ones.
    """
    checked = check_genes(genes)
    targets = study.attrs.get("targets", ())
    whole, pricer = Pricer(price, targets=targets), Pricer(options.bound or price, targets=targets)
    metrics = list(pricer([{gene: known[0] for gene, known in checked.items()}]))
    limits = resolve_budgets(budgets, metrics)
    objective = _objective(limits, metrics)
    ordered = [objective, *(metric for metric in metrics if metric != objective)]
    identity = {"genes": checked, "metrics": ordered, "budgets": limits, "seed": seed}
    identity |= {name: getattr(options, name) for name in IDENTITY}
    study.check(identity)
    screen = Screen(checked, pricer, limits, objective=objective, seed=seed)
    study.declare(identity)  # after the screen: an impossible budget leaves the study as it was
    problem = Problem(
        genes=checked,
        budgets=limits,
        objective=objective if options.mode == "front" else None,
        seed=seed,
        price=pricer,
        batch=options.batch,
        complete=_completion(options, limits.get(objective)),
        key=options.key or whole_key,
        lost=options.lost,
    )
    return Proposer(problem, screen, whole, options)


def _completion(options: SearchOptions, level: float | None) -> Callable[[Choice], Choice] | None:
    """Return the options' `complete` at the budget's level; None if there is none."""
    complete = options.complete
    return None if complete is None else lambda choice: complete(choice, level)


def _objective(budgets: Mapping[str, float], metrics: Sequence[str]) -> str:
    """Return the cost that is minimised: the first latency, one with a budget before others."""
    ordered = [*budgets, *metrics]
    return next((metric for metric in ordered if is_latency(metric)), ordered[0])
