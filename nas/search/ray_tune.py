"""The engine as a searcher of Ray Tune: budgets, samplers, completion and rows for `tune.Tuner`."""

import logging
import weakref
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeAlias

from ray.tune.search import Searcher

from nas.errors import ConfigError, CorruptFile
from nas.files import read_json, write_json
from nas.search.budgets import meets
from nas.search.evaluate import Outcome
from nas.search.ledger import FAILURES_IN_A_ROW, outcome_of
from nas.search.mind import Proposal
from nas.search.options import SearchOptions
from nas.search.propose import Candidate, Proposer, begin
from nas.search.reported import Result, attempts_of, config_of, from_event, reported, to_event
from nas.search.rows import Price
from nas.study import Choice, Option, Study, Trial, hold

logger = logging.getLogger(__name__)

SCHEMA = 1
PICKLED = ("_start", "_evaluations", "_options", "_metric", "_mode")  # the rest is the journal
Event: TypeAlias = dict[str, Any]  # Any: plain JSON; {"ask"}, {"ask", "tell"} or {"adopt", "tell"}


def tune_searcher(
    genes: Mapping[str, Sequence[Option]],
    price: Price,
    budgets: Mapping[str, float],
    *,
    evaluations: int,
    seed: int = 0,
    options: SearchOptions | None = None,
    study: Study | None = None,
    metric: str = "accuracy",
) -> "EngineSearcher":
    """Return a searcher for `tune.TuneConfig(search_alg=..., num_samples=-1)`.

    A trial's config holds one option for every gene, completed, within the budgets and different
    from every other trial's. What the trainable reports last becomes a row of `searcher.study`:
    `metric` as the accuracy, `loss` if there is one; a trial that fails, reports nothing or NaN
    is a failed row. `Tuner.restore` goes on with what was asked and told (JSON beside Ray's own
    state); rows of the study that this state does not know are taken over.

    From its first candidate on the searcher owns its study, in the process that runs the Tuner,
    until every trial is recorded, `searcher.close()`, or that process ends; a second one is refused
    with TryAgain by its `suggest`, which ends its Tuner.

    Args:
        genes: The options of every gene: plain values or tuples of them.
        price: Returns {metric: costs of shape (n,)} of n choices; Ray pickles it.
        budgets: {metric: limit}.
        evaluations: How many trials to suggest in all, rows of the study included.
        seed: The same seed gives the same trials, one at a time.
        options: How to search; executor and timeout are Tune's business.
        study: Where to record; in memory if not given. Its rows count as evaluated.
        metric: What the trainable reports and what is maximised.

    Raises:
        InfeasibleBudget: no candidate meets the budgets.
        ConfigError: a setting breaks a rule, or the study was begun with other ones.
    """
    if evaluations < 1:
        raise ConfigError(f"evaluations must be at least 1, but is {evaluations}.")
    options = options or SearchOptions()
    if options.executor is not None or options.timeout_s is not None:
        raise ConfigError(
            "Tune decides where trials run and for how long: leave executor and timeout_s out of "
            "the options and give the Tuner resources and a stop criterion."
        )

    def start(study: Study) -> Proposer:
        return begin(genes, price, budgets, seed=seed, options=options, study=study)

    study = study or Study.in_memory()
    return EngineSearcher(start, study, evaluations=evaluations, options=options, metric=metric)


class EngineSearcher(Searcher):
    """Proposes, refuses and records as `nas.search.run` does; Tune evaluates.

    Its whole state is a journal of what was asked and told, in order: a mind that hears the same
    again is in the same state.

    Attributes:
        study: The rows.
    """

    CKPT_FILE_TMPL = "searcher-state-{}.json"

    def __init__(
        self,
        start: Callable[[Study], Proposer],
        study: Study,
        *,
        evaluations: int,
        options: SearchOptions,
        metric: str,
    ) -> None:
        super().__init__(metric=metric, mode="max")
        self.study = study
        self._start = start
        self._evaluations = evaluations
        self._options = options
        self._asked = self._failures = 0
        self._held: ExitStack | None = None
        self._is_current = self._is_ended = False
        self._recorded: dict[Hashable, tuple[int, bool]] = {}
        self._replay([])

    # ------------------------------------------------------------ the study's one owner
    def close(self) -> None:
        """Give the study up. Tuners that do not use all evaluations leave that to the caller."""
        if self._held is not None:
            self._held.close()
            self._held = None

    def _own(self) -> None:
        """Own the study from now on; hear what others recorded before.

        Raises:
            TryAgain: another search owns it; the message says which.
        """
        self._hold()
        if not self._is_current:
            if attempts_of(self._rows()) != self._recorded:
                self._replay(self._journal)
            self._is_current = True

    def _hold(self) -> None:
        if self._held is None:
            held = ExitStack()
            held.enter_context(hold(self.study))
            self._held, self._is_current = held, False
            weakref.finalize(self, held.close)  # where nobody closes it; at the process's end too

    def _close_if_done(self) -> None:
        if not self._waiting and (self._is_ended or self._asked >= self._evaluations):
            self.close()

    # ------------------------------------------------------------ what Tune calls
    def set_search_properties(
        self, metric: str | None, mode: str | None, config: Mapping[str, Any], **spec: Any
    ) -> bool:  # Any: Ray's own
        """Take the metric of a TuneConfig; what varies was said when the searcher was made."""
        if mode not in (None, "max"):
            raise ConfigError(f"mode must be max, but is {mode!r}: report the negative instead.")
        clash = sorted(self._proposer.problem.genes.keys() & config.keys())
        if clash:
            raise ConfigError(f"param_space may not set genes, but has {', '.join(clash)}.")
        if metric is not None:
            self._metric = metric
        return False  # Ray then refuses a param_space that has something to search

    def suggest(self, trial_id: str) -> Any:  # Any: a dict or, against Ray's own type, a text
        """Return the next candidate as a config; FINISHED if there is none to come.

        Raises:
            TryAgain: another search owns the study; the message says which, and until when.
        """
        if self._asked < self._evaluations:
            self._own()
        candidate = self._next()
        if candidate is None:
            self._close_if_done()
            return Searcher.FINISHED
        self._await(trial_id, candidate)
        self._journal.append({"ask": trial_id, "choice": dict(candidate.choice)})
        return dict(candidate.choice)

    def on_trial_result(self, trial_id: str, result: Result) -> None:
        """Remember the last report: a trial that a scheduler ends early has no other."""
        if trial_id in self._waiting:
            self._last[trial_id] = result

    def on_trial_complete(
        self, trial_id: str, result: Result | None = None, error: bool = False
    ) -> None:
        """Record what came of a trial; of one that is unknown too, if it is a candidate."""
        result = result or self._last.get(trial_id)
        self._own()
        if trial_id in self._waiting:
            outcome = self._outcome(result, error=error)
            self._journal.append({"tell": trial_id, **to_event(outcome)})
            self._settle(trial_id, outcome)
        else:
            self._reconcile(trial_id, result)
        self._close_if_done()

    def get_state(self) -> dict[str, Any]:  # Any: plain JSON
        """Return the journal."""
        return {"schema": SCHEMA, "metric": self._metric, "journal": list(self._journal)}

    def set_state(self, state: Mapping[str, Any]) -> None:  # Any: plain JSON
        """Go on from what `get_state` returned."""
        if state.get("schema") != SCHEMA:
            raise CorruptFile(
                f"a searcher's state has schema {SCHEMA}, but this one has {state.get('schema')!r}."
            )
        self._metric = state["metric"]
        self._replay(state["journal"])

    def save(self, checkpoint_path: str) -> None:
        """Write the state as JSON."""
        write_json(Path(checkpoint_path), self.get_state())

    def restore(self, checkpoint_path: str) -> None:
        """Read what `save` wrote.

        Raises:
            CorruptFile: not whole JSON, or not a searcher's state.
        """
        self.set_state(read_json(Path(checkpoint_path)))

    # ------------------------------------------------------------ recording
    def _next(self) -> Candidate | None:
        """Return the next candidate; None, with the reason in the study, if there is none."""
        if self._asked >= self._evaluations:
            return None
        if self._failures >= FAILURES_IN_A_ROW:
            self._end(f"{self._failures} trials in a row failed")
            return None
        candidate = self._proposer.next()
        if candidate is None:
            self._end(self._proposer.ended)
        return candidate

    def _outcome(self, result: Result | None, *, error: bool) -> Outcome:
        """Return what a trial's last report means."""
        return reported(result, str(self._metric), rank_by=self._options.rank_by, error=error)

    def _await(self, trial_id: str, candidate: Candidate) -> None:
        self._asked += 1
        self._waiting[trial_id] = candidate

    def _settle(self, trial_id: str, outcome: Outcome) -> None:
        """Record the result of a trial that was waited for, and tell the mind."""
        candidate = self._waiting.pop(trial_id)
        self._last.pop(trial_id, None)
        self._record(candidate.choice, candidate.costs, candidate.key, outcome)
        self._tell(candidate.proposal, candidate.costs, outcome)

    def _record(
        self, choice: Choice, costs: Mapping[str, float], key: Hashable, outcome: Outcome
    ) -> None:
        """Add the row, unless the study has it: a replay and a restored trial come here again."""
        attempts, is_done = self._recorded.get(key, (0, False))
        if is_done or (attempts and outcome.accuracy is None):
            return
        self._hold()  # a journal that is heard again may have what the study lost
        describe = self._options.describe
        self._recorded[key] = attempts + 1, outcome.accuracy is not None
        self.study.add(
            choice,
            costs,
            accuracy=outcome.accuracy,
            loss=outcome.loss,
            reason=outcome.reason,
            evaluation_s=outcome.evaluation_s,
            attempt=attempts + 1,
            attrs=describe(choice) if describe else {},
        )

    def _tell(self, proposal: Proposal, costs: Mapping[str, float], outcome: Outcome) -> None:
        self._failures = 0 if outcome.accuracy is not None else self._failures + 1
        self._proposer.mind.tell(proposal, outcome.score(self._options.rank_by), costs)

    def _end(self, why: str | None) -> None:
        logger.warning("no more trials: %s", why)
        self._is_ended = True
        self.study.end(why)

    # ------------------------------------------------------------ going on
    def _reconcile(self, trial_id: str, result: Result | None) -> None:
        """Take over the result of a trial that this state never heard of, by its config."""
        choice = self._choice_of(config_of(result or {}))
        if choice is None:
            logger.warning("trial %s is unknown and has no candidate's config; ignored", trial_id)
            return
        choice, costs, key = self._proposer.complete(choice)
        is_done = self._recorded.get(key, (0, key in {c.key for c in self._waiting.values()}))[1]
        if is_done or not meets(costs, self._proposer.problem.budgets):
            logger.info("trial %s is recorded already, or over budget; ignored", trial_id)
            return
        outcome = self._outcome(result, error=False)
        self._record(choice, costs, key, outcome)
        self._adopt(choice, costs, key, outcome)

    def _choice_of(self, config: Mapping[str, Any]) -> Choice | None:  # Any: of a trial's config
        """Return the choice in a config; None if a gene is missing or has no option of its own."""
        choice = {}
        for gene, options in self._proposer.problem.genes.items():
            option = config.get(gene)
            option = tuple(option) if isinstance(option, list) else option
            if gene not in config or option not in options:
                return None
            choice[gene] = option
        return choice

    def _adopt(
        self, choice: Choice, costs: Mapping[str, float], key: Hashable, outcome: Outcome
    ) -> None:
        """Tell the mind of a candidate that it did not propose, or that was tried again."""
        self._asked += not self._proposer.is_seen(key)
        self._journal.append({"adopt": dict(choice), **to_event(outcome)})
        self._tell(self._proposer.adopt(choice), costs, outcome)

    def _replay(self, journal: Sequence[Event]) -> None:
        """Begin anew, hear a journal again, then the rows of the study that it does not know."""
        self._is_current = self._held is not None  # only an owner's rows are all there will be
        self._is_ended = False
        self._proposer = self._start(self.study)
        self._journal: list[Event] = []
        self._waiting: dict[str, Candidate] = {}
        self._last: dict[str, Result] = {}
        self._asked = self._failures = 0
        rows = self._rows()
        self._recorded = attempts_of(rows)
        for event in journal:
            self._hear(event)
        for trial_id, candidate in list(self._waiting.items()):
            if candidate.key in rows:  # told after the state was saved
                outcome = outcome_of(rows[candidate.key])
                self._journal.append({"tell": trial_id, **to_event(outcome)})
                self._settle(trial_id, outcome)
        for key, row in rows.items():
            if not self._proposer.is_seen(key):
                self._adopt(row.choice, dict(row.costs), key, outcome_of(row))

    def _rows(self) -> dict[Hashable, Trial]:
        """Return the last row of each candidate in the study now."""
        return {self._proposer.problem.key(row.choice): row for row in self.study.trials}

    def _hear(self, event: Event) -> None:
        """Do again what an event of a journal says."""
        if "tell" in event:
            self._journal.append(event)
            self._settle(event["tell"], from_event(event))
            return
        choice = self._choice_of(event.get("choice") or event.get("adopt") or {})
        if choice is None:
            raise CorruptFile(f"a searcher's state has an event that is none: {event!r:.120}.")
        if "adopt" in event:
            choice, costs, key = self._proposer.complete(choice)
            self._record(choice, costs, key, from_event(event))
            self._adopt(choice, costs, key, from_event(event))
            return
        self._journal.append(event)
        self._await(event["ask"], self._again(choice))

    def _again(self, choice: Choice) -> Candidate:
        """Return the next candidate, which is the one recorded unless versions differ."""
        candidate = self._proposer.next()
        choice, costs, key = self._proposer.complete(choice)
        if candidate is not None and candidate.key == key:
            return candidate
        logger.warning("another version made this state: its trials are kept, not repeated")
        if candidate is not None:
            self._proposer.mind.tell(candidate.proposal, None, candidate.costs)
        proposal = self._proposer.adopt(choice)
        return Candidate(proposal=proposal, choice=choice, costs=costs, key=key)

    # ------------------------------------------------------------ Ray's own state
    def __getstate__(self) -> dict[str, Any]:  # Any: as pickle has it
        """Return what Ray keeps of a Tuner: the study by its name, never a password."""
        url = self.study.url
        study = (self.study.name, bool(url), None if "***" in url else url)
        own = {name: self.__dict__[name] for name in PICKLED}
        return {"own": own, "study": study, "journal": self._journal}

    def __setstate__(self, state: Mapping[str, Any]) -> None:  # Any: as pickle has it
        """Open the study again, $NAS_STORAGE if its URL has a password, and hear the journal.

        Whoever owned the study, this copy does not: not until it suggests or records something.
        """
        self.__dict__.update(state["own"])
        self._held = None
        name, is_stored, url = state["study"]
        self.study = Study.load(name, storage=url) if is_stored else Study.in_memory(name)
        self._replay(state["journal"])
