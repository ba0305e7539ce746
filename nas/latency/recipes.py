"""What has to be timed to price a part: chains of parts, and how its cost is read off them.

A part timed alone pays for a session, for reading its input and for writing its output; inside a
network it pays for none of these. So nothing is priced alone. Chains begin as networks do, with a
convolution: the lead-in, a fixed stem of one convolution to the side and channels in question. It
is cheap, and it leaves the feature map in the layout in which the runtime keeps it (without it,
ONNX Runtime goes back to plain NCHW at every residual sum, and parts cost up to 1.7 times more).

* What keeps its shape, and can repeat, costs the slope between 1 and k copies in a row, each copy
  behind the companion that a block always gives it (`mlp` behind `pool`, `ffn` and `group_attn`
  behind `dw`, `token_mlp` behind an `attn`), less the companion's own slope: a layout change
  between two kinds belongs to them.
* What changes shape costs the difference of the lead-in with and without it.
* A stem costs what it takes alone.
* A whole block, where the sum of its parts is not true enough, costs the slope or the difference of
  all of its parts together.

In the sum over a network what it costs to write out each shape cancels exactly, and the session's
own cost is left once, in the stem.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from nas.block import Attn, Block, Dw, Pool, Stem

Chain = tuple[Block, ...]
Terms = tuple[tuple[Chain, float], ...]

SHAPE_CHANGERS = ("stem", "downsample", "merge", "head")
LEAD_IN_CHANNELS = 3
COMPANION_HEADS, COMPANION_KEY, COMPANION_VALUE = 4, 8, 16  # of the attn before a token_mlp


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How one entry is made: its ms is the sum of coefficient * ms(chain) over `terms`."""

    entry: str
    terms: Terms
    by: str
    alone: Chain


def parts_of(blocks: Iterable[Block]) -> Chain:
    """Return the parts of a network in order."""
    return tuple(part for block in blocks for part in block.parts())


def lead_in(channels: int, resolution: int) -> Block:
    """Return the fixed convolution before everything that is timed at this shape."""
    return Stem(
        resolution=2 * resolution,
        channels=LEAD_IN_CHANNELS,
        widths=(channels,),
        bias=1,
        act_last=0,
    )


def companion(part: Block) -> Block | None:
    """Return the fixed part that stands before every copy of a repeating part, if any."""
    r, c = part.resolution, part.in_channels
    if part.kind == "mlp":
        return Pool(resolution=r, channels=c, pool=3)
    if part.kind == "token_mlp":
        n, k, v = COMPANION_HEADS, COMPANION_KEY, COMPANION_VALUE
        return Attn(resolution=r, channels=c, heads=n, key=k, value=v)
    if part.kind in ("ffn", "group_attn"):
        return Dw(resolution=r, channels=c)
    return None


def recipe(part: Block, *, copies: int) -> Recipe:
    """Return how to price one part, or one block as a whole.

    Args:
        part: The part; or a block of several parts.
        copies: Length of the longer chain of what repeats, at least 2.
    """
    name = str(part)
    if part.kind == "stem":
        return Recipe(entry=name, terms=(((part,), 1.0),), by="alone", alone=(part,))
    lead = lead_in(part.in_channels, part.resolution)
    if len(part.parts()) > 1:
        return _block_recipe(part, lead, copies)
    if part.kind in SHAPE_CHANGERS:
        terms: Terms = (((lead, part), 1.0), ((lead,), -1.0))
        return Recipe(entry=name, terms=terms, by=f"difference behind {lead}", alone=(part,))
    before = companion(part)
    if before is None:
        by = f"slope of 1 and {copies}"
        return Recipe(entry=name, terms=_slope(lead, (part,), copies), by=by, alone=(part,))
    without = tuple((chain, -weight) for chain, weight in _slope(lead, (before,), copies))
    return Recipe(
        entry=name,
        terms=_slope(lead, (before, part), copies) + without,
        by=f"slope of 1 and {copies} behind {before}",
        alone=(part,),
    )


def _block_recipe(block: Block, lead: Block, copies: int) -> Recipe:
    parts = block.parts()
    before = block.in_channels, block.resolution
    if (block.out_channels, block.out_resolution) == before:
        terms, by = _slope(lead, parts, copies), f"slope of 1 and {copies}, whole"
    else:
        terms, by = (((lead, *parts), 1.0), ((lead,), -1.0)), f"difference behind {lead}, whole"
    return Recipe(entry=str(block), terms=terms, by=by, alone=parts)


def _slope(lead: Block, chain: Chain, copies: int) -> Terms:
    weight = 1.0 / (copies - 1)
    return (((lead, *chain * copies), weight), ((lead, *chain), -weight))


def recipes(blocks: Iterable[Block], *, copies: int) -> tuple[Recipe, ...]:
    """Return the recipes of everything these blocks need, each once, in the order to time them.

    What shares chains stands together, so that what is subtracted from each other is timed in
    the same rounds: first what changes shape, then each companion before its parts.
    """
    needed = {str(part): part for part in parts_of(blocks)}
    ordered: dict[str, Block] = {}
    for part in sorted(needed.values(), key=_place):
        before = companion(part)
        if before is not None:
            ordered.setdefault(str(before), before)
        ordered.setdefault(str(part), part)
    return tuple(recipe(part, copies=copies) for part in ordered.values())


def block_recipes(
    blocks: Iterable[Block], kinds: Collection[str], *, copies: int
) -> tuple[Recipe, ...]:
    """Return the recipes of whole blocks of some kinds, each block once."""
    wanted = dict.fromkeys(block for block in blocks if block.kind in kinds)
    return tuple(recipe(block, copies=copies) for block in wanted)


def _place(part: Block) -> tuple[bool, int, int, str]:
    return part.kind not in SHAPE_CHANGERS, -part.resolution, part.in_channels, str(part)


def chain_name(chain: Chain) -> str:
    """Return the name of a chain: its parts, repeats counted ("dw_r8_c32*3", "a+b")."""
    names: list[str] = []
    counts: list[int] = []
    for part in chain:
        if names and names[-1] == str(part):
            counts[-1] += 1
        else:
            names.append(str(part))
            counts.append(1)
    words = (f"{n}*{k}" if k > 1 else n for n, k in zip(names, counts, strict=True))
    return "+".join(words)
