"""What to say of a pruned network, and what to run next."""

import shlex
import sys
from collections.abc import Mapping
from typing import Any

from nas.environment import program
from nas.pipeline.outcome import rows
from nas.study import describe_cost, latency_metric

NEXT_EPOCHS = 20  # what is suggested


def told(values: Mapping[str, Any], *, target: str, epochs: int) -> tuple[str, ...]:
    """Return the result in lines, and what to run next."""
    metric = latency_metric(values["target"])
    before, after = (values["predicted"][name] for name in ("before", "after"))
    measured = values["measured"]
    names = {
        "before": "as it was",
        "refitted": "uncut with statistics refitted",
        "pruned": "pruned",
        "trained": f"after {epochs} epochs",
    }
    accuracy = ", ".join(
        f"{score['accuracy']:.1%} {names[name]}" for name, score in values["scores"].items()
    )
    pairs = {
        **{
            f"budget of {name}": describe_cost(name, limit)
            for name, limit in values["budgets"].items()
        },
        "predicted latency": f"{after[metric]:.4g} ms, was {before[metric]:.4g}",
        "measured latency": _measured_text(measured, values["budgets"][metric]),
        "accuracy on search": accuracy,
        "size": f"{values['params']['after']:,} parameters, was {values['params']['before']:,}",
    }
    if values["lacking"]:
        pairs["not in the table"] = (
            f"{values['lacking']} of {values['offered']} smaller versions; --measure times them"
        )
    pairs["folder"] = values["folder"]
    cut = [f"  {row['place']}.{row['field']}  {row['before']} -> {row['after']}"
           for row in values["cut"]]  # fmt: skip
    nas = program("nas")
    steps = [f"{nas} verify {shlex.quote(values['folder'])} --target {target}"]
    if cut and not epochs:
        again = shlex.join(sys.argv[1:]) if sys.argv[1:2] == ["prune"] else "prune ..."
        steps.append(
            f"{nas} {again} --epochs {NEXT_EPOCHS}   # trains it on, taught by what it was"
        )
    told = cut or ["  nothing: the network meets the budgets as it is"]
    return (*rows(pairs), "", "cut", *told, "", "Try next:", *(f"  {step}" for step in steps))


def _measured_text(measured: Mapping[str, Any], limit_ms: float) -> str:
    if "after" not in measured:
        return "not here; `nas verify` with --device, or with --plan and --results"
    now = measured["after"]
    was = f", was {measured['before']['median_ms']:.4g}" if "before" in measured else ""
    return (
        f"{now['median_ms']:.4g} ms{was}, at most {now['ci_high_ms']:.4g} "
        f"({now['ci_high_ms'] / limit_ms:.0%} of the budget, grade {now['grade']})"
    )
