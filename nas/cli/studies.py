"""Verbs that ask the database: studies, trials, front, study show, study delete."""

import csv as csv_format
import io
import json as json_format
import math
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nas.cli import flags
from nas.cli.console import Options, emit, guarded, table
from nas.errors import ConfigError, NasError

if TYPE_CHECKING:
    import pandas

LONGEST_CELL = 60
COUNTS = {"params", "macs", "bytes"}
NOT_IN_TABLES = ("gene.", "created_at", "evaluation_s", "attempt")

StudyName = Annotated[str, typer.Argument(metavar="STUDY", help="Its name; `nas studies` lists.")]
Csv = Annotated[
    bool, typer.Option("--csv", help="Print comma-separated values (RFC 4180) on stdout.")
]


def studies(
    storage: flags.Storage = None,
    json: flags.Json = False,
    debug: flags.Debug = False,
) -> None:
    """List the studies in a database, with their best accuracy under their budgets."""
    options = Options(json=json, debug=debug)
    with guarded(options):
        from nas.files import to_plain
        from nas.study import Study

        found = [to_plain(summary) for summary in Study.list(storage)]
        keys = list(found[0]) if found else []
        text = table(keys, [[_short(row[key]) for key in keys] for row in found])
        none = "no studies yet; `nas quickstart` makes one."
        emit({"studies": found}, text if found else none, options)


def _short(value: Any) -> Any:
    if isinstance(value, dict):
        return " ".join(f"{key}<={item:g}" for key, item in value.items())
    return value


def trials(
    study: StudyName,
    where: Annotated[
        str | None,
        typer.Option("--where", help='A condition: "latency_ms < 5 and params < 3e6".'),
    ] = None,
    sort: Annotated[
        list[str] | None,
        typer.Option("--sort", help="A column; -accuracy: highest first; may be repeated."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many trials.")] = None,
    storage: flags.Storage = None,
    csv: Csv = False,
    json: flags.Json = False,
    debug: flags.Debug = False,
) -> None:
    """List the trials of a study: those that meet a condition, in any order.

    A condition has names of columns, numbers, 'text', comparisons, and, or, not, + - * /. Names
    with dots, colons or spaces stand in backticks; a lone latency_ms is the only target's. Every
    column is in --csv and --json, the choices (gene.NAME) included.

      nas trials quickstart --where 'latency_ms < 0.1 and accuracy >= 0.9' --sort -accuracy

      nas trials quickstart --where '`gene.s1.width` == 24 or state == "FAIL"' --csv
    """
    options = Options(json=json, debug=debug)
    with guarded(options):
        from nas.study import Study, select

        _check_format(csv, options)
        opened = Study.load(study, storage=storage)
        frame = opened.to_frame()
        found = select(frame, where=where, sort=sort or (), limit=limit)
        none = f"none of the {len(frame)} trials meets that." if len(frame) else "no trials yet."
        _print(found, {"study": opened.name}, none, csv, options)


def front(
    study: StudyName,
    cost: Annotated[
        list[str] | None,
        typer.Option("--cost", help="latency_ms (default), params, macs, ...; may be repeated."),
    ] = None,
    storage: flags.Storage = None,
    csv: Csv = False,
    json: flags.Json = False,
    debug: flags.Debug = False,
) -> None:
    """List the trials within the budgets that no other beats in accuracy and cost.

    The costs are the latencies of all the study's targets, or those of --cost. The cheapest stands
    first.
    """
    options = Options(json=json, debug=debug)
    with guarded(options):
        from nas.study import Study, front_metrics

        _check_format(csv, options)
        opened = Study.load(study, storage=storage)
        costs = list(front_metrics(cost, opened.metrics))
        found = opened.to_frame(opened.front(metric=costs))
        none = "no trial is within the study's budgets."
        _print(found, {"study": opened.name, "costs": costs}, none, csv, options)


def study_show(
    name: StudyName,
    storage: flags.Storage = None,
    json: flags.Json = False,
    debug: flags.Debug = False,
) -> None:
    """Show a study: its settings and budgets, its best trial, how many there are, how it ended."""
    options = Options(json=json, debug=debug)
    with guarded(options):
        from nas.study import Study, overview

        found = overview(Study.load(name, storage=storage))
        emit(found, _overview_text(found), options)


def study_delete(
    name: StudyName,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    storage: flags.Storage = None,
    json: flags.Json = False,
    debug: flags.Debug = False,
) -> None:
    """Delete a study with its trials and measurements, after asking. Folders of runs stay.

    Stop a search that is adding to it first: the database does not say whether there is one.
    """
    options = Options(json=json, debug=debug)
    with guarded(options):
        from nas.study import Study, overview

        found = overview(Study.load(name, storage=storage))
        if not yes:
            _ask(found)
        Study.delete(name, storage=storage)
        text = f"deleted {name} with its {found['trials']} trials."
        emit({"deleted": name, "trials": found["trials"]}, text, options)


def _ask(found: dict[str, Any]) -> None:
    """Ask on stderr whether to delete; anything but yes is an error."""
    last = f", the last of {found['last_at']}" if found["last_at"] else ""
    question = (
        f"Delete {found['name']} in {found['storage']} with its {found['trials']} trials{last}?"
    )
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)  # stdout is for results
    answer = sys.stdin.readline()
    if not answer:
        print(file=sys.stderr)
        raise ConfigError("nobody answered, so nothing was deleted; add --yes.")
    if answer.strip().lower() not in ("y", "yes"):
        raise NasError(f"nothing was deleted; the study {found['name']!r} stays as it is.")


# ---------------------------------------------------------------- rows on stdout
def _check_format(csv: bool, options: Options) -> None:
    if csv and options.json:
        raise ConfigError("output has one format, but --csv and --json are given; leave one out.")


def _print(
    frame: "pandas.DataFrame", about: dict[str, Any], none: str, csv: bool, options: Options
) -> None:
    """Print rows as CSV, as JSON (missing is null) or as a table."""
    records = [
        {column: _plain(value, column) for column, value in zip(frame.columns, row, strict=True)}
        for row in frame.itertuples(index=False, name=None)
    ]
    if csv:
        sys.stdout.write(_csv(list(frame.columns), records))
        return
    text = _table(list(frame.columns), records) if records else none
    emit({**about, "trials": records}, text, options)


def _plain(value: Any, column: str) -> Any:
    """Return one value as JSON has it: missing and infinite are null, counts are whole."""
    from nas.study import as_text

    if value is None or value != value:  # NaN and NaT are unequal to themselves
        return None
    if isinstance(value, tuple | list):
        return list(value)
    if hasattr(value, "isoformat"):
        return as_text(value)
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        if column.removeprefix("measured ") in COUNTS and value.is_integer():
            return int(value)
    return value


def _csv(columns: list[str], records: list[dict[str, Any]]) -> str:
    """Return RFC 4180 with a header: CRLF, quotes where needed, empty for missing."""
    from nas.study import as_text

    stream = io.StringIO()
    writer = csv_format.writer(stream)
    writer.writerow(columns)
    for record in records:
        writer.writerow("" if item is None else as_text(item) for item in record.values())
    return stream.getvalue()


def _table(columns: list[str], records: list[dict[str, Any]]) -> str:
    """Return what people look at: facts and costs that any row has, without the choices."""
    shown = [
        column
        for column in columns
        if not column.startswith(NOT_IN_TABLES)
        and any(record[column] is not None for record in records)
    ]
    targets = {column.partition("latency_ms:")[2] for column in shown if "latency_ms:" in column}
    header = [
        column.replace(f":{next(iter(targets))}", "") if len(targets) == 1 else column
        for column in shown
    ]
    return table(header, [[_cell(record[column]) for column in shown] for record in records])


def _cell(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    line = " ".join(value.split())
    return line if len(line) <= LONGEST_CELL else f"{line[: LONGEST_CELL - 3]}..."


# ---------------------------------------------------------------- one study
def _overview_text(found: dict[str, Any]) -> str:
    from nas.study import describe_cost

    states = ", ".join(f"{count} {state}" for state, count in sorted(found["states"].items()))
    budgets = [
        f"{metric} <= {describe_cost(metric, limit)}" for metric, limit in found["budgets"].items()
    ]
    lines = {
        "study": f"{found['name']} in {found['storage']}",
        "trials": f"{found['trials']}{f' ({states})' if states else ''}",
        "recorded": f"{found['first_at']} to {found['last_at']}" if found["first_at"] else "-",
        "budgets": "\n".join(budgets) or "-",
        "best": _best_text(found["best"]),
        "ended": found["ended"] or "no reason recorded: it reached its count, was stopped, or runs",
        "genes": f"{len(found['genes'])}, {math.prod(found['genes'].values()):.3g} combinations",
        **{
            name: value if isinstance(value, str) else json_format.dumps(value)
            for name, value in found["settings"].items()
        },
    }
    width = max(map(len, lines))
    indent = "\n" + " " * (width + 2)
    return "\n".join(
        f"{key:<{width}}  {value.replace(chr(10), indent)}" for key, value in lines.items()
    )


def _best_text(best: dict[str, Any] | None) -> str:
    from nas.study import describe_cost

    if best is None:
        return "no trial is within the budgets yet"
    lines = [f"trial {best['trial']}, accuracy {best['accuracy']:.4g}"]
    lines[0] += f", architecture {best['architecture_id']}" if best["architecture_id"] else ""
    for metric, cost in best["costs"].items():
        known = best["measured"].get(metric)
        measured = f", measured {describe_cost(metric, known['measured'])}" if known else ""
        lines.append(f"{metric} {describe_cost(metric, cost)}{measured}")
    return "\n".join(lines)
