"""The engine: propose, refuse what is infeasible or known, evaluate, record, tell."""

import logging
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

from nas.errors import ConfigError, NasError
from nas.search.budgets import meets, resolve_budgets
from nas.search.evaluate import Evaluate, Outcome, outcomes
from nas.search.ledger import FAILURES_IN_A_ROW, Ledger, check_costs, outcome_of
from nas.search.options import SearchOptions
from nas.search.rows import Price
from nas.search.samplers import SAMPLERS, Problem, Proposal, whole_key
from nas.search.screen import Pricer, Screen
from nas.study import Choice, Genes, Option, Study, check_genes, describe_cost, is_latency

logger = logging.getLogger(__name__)

PATIENCE = 24  # refused proposals in a row before the screen looks for a candidate itself
LEAST_PATIENCE = 3
IDENTITY = ("sampler", "mode", "rank_by", "batch")  # options that change what is found


def run(
    genes: Mapping[str, Sequence[Option]],
    evaluate: Evaluate,
    price: Price,
    budgets: Mapping[str, float],
    *,
    evaluations: int,
    seed: int = 0,
    options: SearchOptions | None = None,
    study: Study | None = None,
) -> Study:
    """Search the genes for the highest accuracy within the budgets.

    Only feasible candidates nobody has seen are evaluated and recorded. A study that has rows is
    gone on with: the search is repeated from its seed with the recorded results, so that it
    evaluates what it would have evaluated without the interruption.

    Args:
        genes: The options of every gene: plain values or tuples of them.
        evaluate: Returns the accuracy of a choice, or a dict with `accuracy`, perhaps `loss`, and
            anything else to record. An exception or NaN makes the candidate a failed one.
        price: Returns {metric: costs of shape (n,)} of n choices; the same every time.
        budgets: {metric: limit}; a lone `latency_ms` is the only latency that is priced.
        evaluations: How many candidates to evaluate in all, those in the study included.
        seed: The same seed gives the same study.
        options: How to search.
        study: Where to record; in memory if not given.

    Returns:
        The study. `study.ended` says why if there are fewer rows than `evaluations`.

    Raises:
        InfeasibleBudget: no candidate meets the budgets; nothing was evaluated.
        ConfigError: a setting breaks a rule, or the study was begun with other ones.
        NasError: three evaluations in a row failed.
        TryAgain: the database is away; everything recorded is safe.
    """
    if evaluations < 1:
        raise ConfigError(f"evaluations must be at least 1, but is {evaluations}.")
    options = options or SearchOptions()
    if options.executor is not None and options.batch == 1:
        logger.warning("an executor has one candidate at a time: set batch to its workers")
    study = study or Study.in_memory()
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
    problem = _problem(checked, pricer, limits, objective, seed=seed, options=options)
    search = _Search(problem, screen, whole, study=study, options=options)
    search.go(evaluate, evaluations)
    return study


def _problem(
    genes: Genes,
    pricer: Pricer,
    limits: Mapping[str, float],
    objective: str,
    *,
    seed: int,
    options: SearchOptions,
) -> Problem:
    """Return what the engine and its mind are to solve."""
    return Problem(
        genes=genes,
        budgets=limits,
        objective=objective if options.mode == "front" else None,
        seed=seed,
        price=pricer,
        batch=options.batch,
        complete=_completion(options, limits.get(objective)),
        key=options.key or whole_key,
    )


def _completion(options: SearchOptions, level: float | None) -> Callable[[Choice], Choice] | None:
    """Return the options' `complete` at the budget's level; None if there is none."""
    complete = options.complete
    return None if complete is None else lambda choice: complete(choice, level)


def _objective(budgets: Mapping[str, float], metrics: Sequence[str]) -> str:
    """Return the cost that is minimised: the first latency, one with a budget before others."""
    ordered = [*budgets, *metrics]
    return next((metric for metric in ordered if is_latency(metric)), ordered[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Candidate:
    """A completed, feasible, unseen candidate on its way to be evaluated."""

    proposal: Proposal
    choice: Choice
    costs: dict[str, float]
    key: Hashable


class _Search:
    """The state of one search: what was seen, what is waiting to start, how often it failed."""

    def __init__(
        self,
        problem: Problem,
        screen: Screen,
        price: Pricer,
        *,
        study: Study,
        options: SearchOptions,
    ) -> None:
        self._problem, self._price = problem, price
        self._mind = mind = SAMPLERS[options.sampler](problem)
        self._screen = screen
        self._study = study
        self._options = options
        self._ledger = Ledger(study.trials, problem.key)
        self._seen: set[Hashable] = set()
        near = options.mode == "best"
        self._starts = screen.starts(mind.num_starts, near_budget=near)[::-1]
        self._patience = PATIENCE
        self._ended: str | None = None
        self._done = self._failures = self._refused = self._evaluated = 0
        self._best: tuple[float, float] | None = None

    def go(self, evaluate: Evaluate, evaluations: int) -> None:
        """Evaluate until there are `evaluations` candidates, or no other one is found."""
        if len(self._ledger):
            logger.info("going on with %s: %d rows", self._study.name, len(self._ledger))
        while self._done < evaluations and self._ended is None:
            batch: list[_Candidate] = []
            while len(batch) < min(self._options.batch, evaluations - self._done):
                candidate = self._propose()
                if candidate is None:
                    break
                batch.append(candidate)
            self._settle(batch, evaluate, evaluations)
        self._study.end(self._ended)
        logger.info(
            "%d candidates, %d of them evaluated now; %d proposals refused%s",
            *(self._done, self._evaluated, self._refused),
            f"; ended early: {self._ended}" if self._ended else "",
        )

    # ------------------------------------------------------------ proposing
    def _propose(self) -> _Candidate | None:
        """Return the next candidate; None, and `_ended` says why, if there is no other."""
        while self._starts:
            candidate = self._adopt(self._starts.pop())
            if candidate is not None:
                return candidate
        for _ in range(self._patience):
            proposal = self._mind.ask()
            choice, costs, key = self._complete(proposal.choice)
            if self._is_welcome(costs, key):
                self._patience = PATIENCE
                return self._take(proposal, choice, costs, key)
            self._refused += 1
            self._mind.tell(proposal, None, costs)
        self._patience = max(LEAST_PATIENCE, self._patience // 2)
        candidate = self._screen.unseen(self._adopt)
        if candidate is None:
            count = len(self._seen)
            self._ended = (
                f"all {count} feasible candidates were evaluated"
                if self._screen.is_exhaustive
                else f"no feasible candidate besides the {count} evaluated was found in many draws"
            )
        return candidate

    def _adopt(self, raw: Choice) -> _Candidate | None:
        """Return a choice of the screen as a candidate, unless it is infeasible or seen."""
        choice, costs, key = self._complete(raw)
        if not self._is_welcome(costs, key):
            return None
        return self._take(self._mind.adopt(raw), choice, costs, key)

    def _complete(self, raw: Choice) -> tuple[Choice, dict[str, float], Hashable]:
        problem = self._problem
        choice = problem.complete(raw) if problem.complete else raw
        costs = {metric: float(values[0]) for metric, values in self._price([choice]).items()}
        return choice, costs, problem.key(choice)

    def _is_welcome(self, costs: Mapping[str, float], key: Hashable) -> bool:
        return key not in self._seen and meets(costs, self._problem.budgets)

    def _take(
        self, proposal: Proposal, choice: Choice, costs: dict[str, float], key: Hashable
    ) -> _Candidate:
        self._seen.add(key)
        return _Candidate(proposal=proposal, choice=choice, costs=costs, key=key)

    # ------------------------------------------------------------ evaluating
    def _settle(self, batch: list[_Candidate], evaluate: Evaluate, evaluations: int) -> None:
        """Get the result of every candidate, recorded or fresh, and tell the mind in order."""
        rows = {candidate.key: self._ledger.meet(candidate.key) for candidate in batch}
        fresh = [candidate for candidate in batch if rows[candidate.key] is None]
        if any(not self._ledger.is_known(candidate.key) for candidate in fresh):
            self._tell_unmet(evaluations)
            batch = batch[: max(evaluations - self._done, 0)]
            fresh = [candidate for candidate in fresh if candidate in batch]
        choices = [candidate.choice for candidate in fresh]
        with closing(outcomes(evaluate, choices, self._options)) as results:
            for candidate in batch:
                row = rows[candidate.key]
                if row is not None:
                    check_costs(row, candidate.costs)
                    self._tell(candidate.proposal, candidate.costs, outcome_of(row), evaluations)
                    continue
                outcome = next(results)
                self._record(candidate, outcome)
                self._tell(candidate.proposal, candidate.costs, outcome, evaluations)
                if self._failures >= FAILURES_IN_A_ROW:
                    raise NasError(
                        f"{self._failures} evaluations in a row failed, the last one with "
                        f"{outcome.reason!r}. Mend what they have in common and go on with "
                        "--resume: these candidates are tried again, and nothing else is lost."
                    )

    def _record(self, candidate: _Candidate, outcome: Outcome) -> None:
        describe = self._options.describe
        self._evaluated += 1
        if outcome.reason is not None:
            logger.warning("evaluation failed: %s", outcome.reason)
        self._study.add(
            candidate.choice,
            candidate.costs,
            accuracy=outcome.accuracy,
            loss=outcome.loss,
            reason=outcome.reason,
            evaluation_s=outcome.evaluation_s,
            attempt=self._ledger.attempt(candidate.key),
            attrs={**outcome.attrs, **(describe(candidate.choice) if describe else {})},
        )

    def _tell(
        self, proposal: Proposal, costs: dict[str, float], outcome: Outcome, evaluations: int
    ) -> None:
        """Tell the mind one result, count it and report progress."""
        self._done += 1
        self._failures = 0 if outcome.accuracy is not None else self._failures + 1
        self._mind.tell(proposal, outcome.score(self._options.rank_by), costs)
        metric = self._study.metrics[0]
        if outcome.accuracy is not None:
            found = (-outcome.accuracy, costs[metric])
            self._best = found if self._best is None else min(self._best, found)
        if self._options.progress is not None:
            text = "nothing evaluated yet"
            if self._best is not None:
                text = f"best {-self._best[0]:.4f} at {describe_cost(metric, self._best[1])}"
            self._options.progress(self._done, evaluations, text)

    def _tell_unmet(self, evaluations: int) -> None:
        """Tell the mind the rows it would not have proposed today, so that none is lost.

        That happens only if the rows were made by another version of the sampler, or by hand.
        """
        unmet = self._ledger.unmet()
        if unmet:
            logger.warning(
                "%d rows of %s are not what this seed proposes (another version made them?); "
                "they are used, but the study cannot be repeated bit for bit",
                *(len(unmet), self._study.name),
            )
        for key, row in unmet:
            self._ledger.meet(key)
            self._seen.add(key)
            proposal = self._mind.adopt(row.choice)
            self._tell(proposal, dict(row.costs), outcome_of(row), evaluations)
