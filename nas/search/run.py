"""The engine: propose, refuse what is infeasible or known, evaluate, record, tell."""

import logging
from collections.abc import Mapping, Sequence
from contextlib import closing

from nas.errors import ConfigError, NasError
from nas.search.evaluate import Evaluate, Outcome, outcomes
from nas.search.ledger import FAILURES_IN_A_ROW, Ledger, check_costs, outcome_of
from nas.search.mind import Proposal
from nas.search.options import SearchOptions
from nas.search.propose import Candidate, Proposer, begin
from nas.search.rows import Price
from nas.study import Option, Study, describe_cost, hold

logger = logging.getLogger(__name__)


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
        TryAgain: another process searches this study, or the database is away; everything recorded
            is safe.
    """
    if evaluations < 1:
        raise ConfigError(f"evaluations must be at least 1, but is {evaluations}.")
    options = options or SearchOptions()
    if options.executor is not None and options.batch == 1:
        logger.warning("an executor has one candidate at a time: set batch to its workers")
    study = study or Study.in_memory()
    with hold(study):
        proposer = begin(genes, price, budgets, seed=seed, options=options, study=study)
        _Search(proposer, study=study, options=options).go(evaluate, evaluations)
    return study


class _Search:
    """The state of one search: what is recorded, how many are done, how often it failed."""

    def __init__(self, proposer: Proposer, *, study: Study, options: SearchOptions) -> None:
        self._proposer = proposer
        self._study = study
        self._options = options
        self._ledger = Ledger(study.trials, proposer.problem.key)
        self._done = self._failures = self._evaluated = 0
        self._best: tuple[float, float] | None = None

    def go(self, evaluate: Evaluate, evaluations: int) -> None:
        """Evaluate until there are `evaluations` candidates, or no other one is found."""
        if len(self._ledger):
            logger.info("going on with %s: %d rows", self._study.name, len(self._ledger))
        while self._done < evaluations and self._proposer.ended is None:
            batch: list[Candidate] = []
            while len(batch) < min(self._options.batch, evaluations - self._done):
                candidate = self._proposer.next()
                if candidate is None:
                    break
                batch.append(candidate)
            self._settle(batch, evaluate, evaluations)
        self._study.end(self._proposer.ended)
        logger.info(
            "%d candidates, %d of them evaluated now; %d proposals refused%s",
            *(self._done, self._evaluated, self._proposer.num_refused),
            f"; ended early: {self._proposer.ended}" if self._proposer.ended else "",
        )

    # ------------------------------------------------------------ evaluating
    def _settle(self, batch: list[Candidate], evaluate: Evaluate, evaluations: int) -> None:
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

    def _record(self, candidate: Candidate, outcome: Outcome) -> None:
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
        self._proposer.mind.tell(proposal, outcome.score(self._options.rank_by), costs)
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
            proposal = self._proposer.adopt(row.choice)
            self._tell(proposal, dict(row.costs), outcome_of(row), evaluations)
