"""What importance says of a supernet: where it lies, how much can go, and EfficientViT's findings.

EfficientViT (arXiv 2305.07027, section 2.3) pruned Swin-T and DeiT-T by Taylor importance and
found queries, keys and FFNs cut heavily, values hardly, and last stages narrower than doubling
makes them. Whether a supernet says the same is decided here, by numbers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nas.supernet.gates import dims, fixed_dims
from nas.supernet.model import SuperNet
from nas.supernet.taylor.importance import Importance

LOST = 0.01  # of the importance of a dimension
TOLD = 0.05  # shares of channels that differ by less are not told apart
STREAM = "stream"
FFNS = ("mlp.hidden", "ffn.hidden", "token_mlp.hidden")
OVERLAPPING = ("attn.heads",)  # a head is all its values at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What the dimensions of one kind have in one stage.

    Attributes:
        kind: Kind of part and dimension ("ffn.hidden"), or "stream" for a stage's own channels.
        stage: "stem", "s1", ... A transition belongs to the stage it leads to.
        channels: In all of them.
        importance: Share (0 to 1) of the importance of the whole supernet.
        removable: Share (0 to 1) of the channels that can go, the least important ones of each
            dimension first, until 1 % of that dimension's importance is lost.
    """

    kind: str
    stage: str
    channels: int
    importance: float
    removable: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A claim and whether it holds here: reproduced, refuted, not told apart, or not measured."""

    claim: str
    here: str
    verdict: str


def kinds_of(supernet: SuperNet) -> dict[str, str]:
    """Return {dimension: its kind} of everything importance may be measured of."""
    found = {
        f"{slot}.{dim.field}": dim.gate
        for slot, hull in supernet.hull_blocks.items()
        for dim in (*dims(hull), *fixed_dims(hull))
    }
    stages = range(1, len(supernet.space.stages) + 1)
    return found | {f"s{stage}.width": STREAM for stage in stages}


def shares(importance: Importance, kinds: Mapping[str, str]) -> tuple[Share, ...]:
    """Return the shares of each kind in each stage, in the order of the network."""
    counted = {name: own for name, own in importance.items() if kinds[name] not in OVERLAPPING}
    total = sum(float(own.sum()) for own in counted.values())
    groups: dict[tuple[str, str], list[str]] = {}
    for name in sorted(counted, key=lambda name: (name != "stem" and name[:2] != "st", name)):
        groups.setdefault((name.partition(".")[0], kinds[name]), []).append(name)
    found = []
    for (stage, kind), names in groups.items():
        channels = sum(counted[name].size for name in names)
        gone = sum(removable(counted[name]) for name in names)
        inside = sum(float(counted[name].sum()) for name in names)
        found.append(
            Share(
                kind=kind,
                stage=stage,
                channels=channels,
                importance=inside / total if total else 0.0,
                removable=gone / channels,
            )
        )
    return tuple(found)


def removable(values: np.ndarray, lost: float = LOST) -> int:
    """Return how many channels, the least important first, hold at most a share of importance."""
    ordered = np.sort(values, axis=None)
    return int((np.cumsum(ordered) <= lost * ordered.sum()).sum())


def findings(found: Sequence[Share], *, stages: int) -> tuple[Finding, ...]:
    """Hold EfficientViT's three findings against the shares of a supernet."""
    values = _pooled(found, ("attn.value", "group_attn.value"))
    compared = []
    for name, block in (("attn", "mb3d"), ("group_attn", "cga")):
        compared.append(
            _compared(
                f"queries and keys of {block} are redundant, its values are kept",
                (f"{name}.key", _pooled(found, (f"{name}.key",))),
                (f"{name}.value", _pooled(found, (f"{name}.value",))),
            )
        )
    compared.append(
        _compared(
            "FFNs are redundant, values are kept",
            ("FFNs", _pooled(found, FFNS)),
            ("values", values),
        )
    )
    first, last = (
        _pooled([share for share in found if share.stage == f"s{stage}"], None)
        for stage in (1, stages)
    )
    compared.append(_compared("the last stage is wider than it needs to be, the first is not",
                              ("last stage", last), ("first stage", first)))  # fmt: skip
    return tuple(compared)


def _pooled(found: Sequence[Share], kinds: Sequence[str] | None) -> float | None:
    """Return the removable share over all channels of some kinds; None where there is none."""
    own = [share for share in found if kinds is None or share.kind in kinds]
    channels = sum(share.channels for share in own)
    return sum(share.removable * share.channels for share in own) / channels if channels else None


def _compared(
    claim: str, more: tuple[str, float | None], less: tuple[str, float | None]
) -> Finding:
    """Return whether more of the first can go than of the second."""
    names, (a, b) = (more[0], less[0]), (more[1], less[1])
    if a is None or b is None:
        missing = names[0] if a is None else names[1]
        return Finding(claim=claim, here=f"there are no {missing} here", verdict="not measured")
    here = f"for 1 % of importance can go: {a:.0%} of {names[0]}, {b:.0%} of {names[1]}"
    verdict = "reproduced" if a - b >= TOLD else "refuted" if b - a >= TOLD else "not told apart"
    return Finding(claim=claim, here=here, verdict=verdict)
