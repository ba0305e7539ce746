"""What has to be timed to price a block: chains of parts, and how its cost is read off them.

A part timed alone pays for a session, for reading its input and for writing its output; inside a
network it pays for none of these. So nothing is priced alone:

* what keeps its shape (and can repeat) costs the slope between 1 and k copies in a row, each copy
  behind the companion that a block always gives it (`mlp` behind `pool`, `ffn` and `group_attn`
  behind `dw`), less the companion's own slope: a layout change between two kinds belongs to them;
* what changes shape costs the difference of a chain with and without it. Its neighbours are one
  fixed part for each shape, the depthwise `dw_r<side>_c<channels>`:
      stem         (stem, after) - slope(after)
      in between   (before, it, after) - (before) - slope(after)
      head         (before, head) - (before)

In the sum over a network what a neighbour costs at the edge of its chain cancels exactly, and
the session's own cost is left once, in the stem.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from nas.block import Block, Dw, Pool

Chain = tuple[Block, ...]
Terms = tuple[tuple[Chain, float], ...]

SHAPE_CHANGERS = ("stem", "downsample", "merge", "head")
# Kinds that are priced as one entry, because that predicted unseen networks better than their
# parts did; see LOG.md.
WHOLE_BLOCKS: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How one entry is made: its ms is the sum of coefficient * ms(chain) over `terms`."""

    entry: str
    terms: Terms
    by: str
    alone: Chain


def units(block: Block) -> tuple[Block, ...]:
    """Return what a table prices a block by: itself, or its parts."""
    return (block,) if block.kind in WHOLE_BLOCKS else block.parts()


def probe(channels: int, resolution: int) -> Block:
    """Return the fixed neighbour of everything that begins or ends at this shape."""
    return Dw(resolution=resolution, channels=channels)


def companion(unit: Block) -> Chain:
    """Return the fixed part that stands before every copy of a repeating unit, if any."""
    if unit.kind == "mlp":
        return (Pool(resolution=unit.resolution, channels=unit.in_channels, pool=3),)
    if unit.kind in ("ffn", "group_attn"):
        return (probe(unit.in_channels, unit.resolution),)
    return ()


def recipe(unit: Block, *, copies: int) -> Recipe:
    """Return how to price one unit.

    Args:
        unit: A part, or a block whose kind is in WHOLE_BLOCKS.
        copies: Length of the longer chain of what repeats, at least 2.
    """
    alone = unit.parts()
    if unit.kind in SHAPE_CHANGERS:
        return _difference(unit, copies)
    before = companion(unit)
    terms = _slope((*before, *alone), copies)
    by = f"slope of 1 and {copies}"
    if before:
        terms += _negative(_slope(before, copies))
        by += f" behind {before[0]}"
    return Recipe(entry=str(unit), terms=terms, by=by, alone=alone)


def _difference(unit: Block, copies: int) -> Recipe:
    terms: Terms = ()
    words = []
    before: Chain = ()
    after: Chain = ()
    if unit.kind != "stem":
        before = (probe(unit.in_channels, unit.resolution),)
        terms += ((before, -1.0),)
        words.append(f"behind {before[0]}")
    if unit.kind != "head":
        after = (probe(unit.out_channels, unit.out_resolution),)
        terms += _negative(_slope(after, copies))
        words.append(f"before {after[0]}")
    return Recipe(
        entry=str(unit),
        terms=(((*before, unit, *after), 1.0), *terms),
        by=f"difference {' and '.join(words)}",
        alone=(unit,),
    )


def _slope(chain: Chain, copies: int) -> Terms:
    weight = 1.0 / (copies - 1)
    return ((chain * copies, weight), (chain, -weight))


def _negative(terms: Terms) -> Terms:
    return tuple((chain, -weight) for chain, weight in terms)


def recipes(blocks: Iterable[Block], *, copies: int) -> tuple[Recipe, ...]:
    """Return the recipes of everything these blocks need, each once, in the order to time them.

    Shape-changers come first, their neighbours beside them, so that the chains that are
    subtracted from each other are timed in the same rounds.
    """
    needed = {str(unit): unit for block in blocks for unit in units(block)}
    changers = [unit for unit in needed.values() if unit.kind in SHAPE_CHANGERS]
    changers.sort(key=lambda unit: (-unit.resolution, unit.in_channels, str(unit)))
    rest = [unit for unit in needed.values() if unit.kind not in SHAPE_CHANGERS]
    rest.sort(key=lambda unit: (-unit.resolution, unit.in_channels, str(unit)))
    ordered: dict[str, Block] = {}
    for unit in (*changers, *rest):
        if unit.kind in SHAPE_CHANGERS and unit.kind != "stem":
            _add(ordered, probe(unit.in_channels, unit.resolution))
        for part in companion(unit):
            _add(ordered, part)
        _add(ordered, unit)
        if unit.kind in SHAPE_CHANGERS and unit.kind != "head":
            _add(ordered, probe(unit.out_channels, unit.out_resolution))
    return tuple(recipe(unit, copies=copies) for unit in ordered.values())


def _add(ordered: dict[str, Block], unit: Block) -> None:
    ordered.setdefault(str(unit), unit)


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
