"""What has to be timed to price a part: chains of parts, and how its cost is read off them.

A part timed alone pays for a session, for reading its input and for writing its output; inside a
network it pays for none of these. So nothing is priced alone:

* what keeps its shape (and can repeat) costs the slope between 1 and k copies in a row, each copy
  behind the companion that a block always gives it (`mlp` behind `pool`, `ffn` and `group_attn`
  behind `dw`, `token_mlp` behind an `attn`), less the companion's own slope: a layout change
  between two kinds belongs to them;
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

from nas.block import Attn, Block, Dw, Pool

Chain = tuple[Block, ...]
Terms = tuple[tuple[Chain, float], ...]

SHAPE_CHANGERS = ("stem", "downsample", "merge", "head")
COMPANION_HEADS, COMPANION_KEY, COMPANION_VALUE = 4, 8, 16  # of the attn beside a token_mlp


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


def probe(channels: int, resolution: int) -> Block:
    """Return the fixed neighbour of everything that begins or ends at this shape."""
    return Dw(resolution=resolution, channels=channels)


def companion(unit: Block) -> Block | None:
    """Return the fixed part that stands before every copy of a repeating part, if any."""
    r, c = unit.resolution, unit.in_channels
    if unit.kind == "mlp":
        return Pool(resolution=r, channels=c, pool=3)
    if unit.kind == "token_mlp":
        n, k, v = COMPANION_HEADS, COMPANION_KEY, COMPANION_VALUE
        return Attn(resolution=r, channels=c, heads=n, key=k, value=v)
    if unit.kind in ("ffn", "group_attn"):
        return probe(c, r)
    return None


def recipe(unit: Block, *, copies: int) -> Recipe:
    """Return how to price one part.

    Args:
        unit: The part.
        copies: Length of the longer chain of what repeats, at least 2.
    """
    if unit.kind in SHAPE_CHANGERS:
        return _difference(unit, copies)
    before = companion(unit)
    if before is None:
        by = f"slope of 1 and {copies}"
        return Recipe(entry=str(unit), terms=_slope((unit,), copies), by=by, alone=(unit,))
    terms = _slope((before, unit), copies) + _negative(_slope((before,), copies))
    by = f"slope of 1 and {copies} behind {before}"
    return Recipe(entry=str(unit), terms=terms, by=by, alone=(unit,))


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
    needed = {str(part): part for part in parts_of(blocks)}
    changers = [unit for unit in needed.values() if unit.kind in SHAPE_CHANGERS]
    changers.sort(key=lambda unit: (-unit.resolution, unit.in_channels, str(unit)))
    rest = [unit for unit in needed.values() if unit.kind not in SHAPE_CHANGERS]
    rest.sort(key=lambda unit: (-unit.resolution, unit.in_channels, str(unit)))
    ordered: dict[str, Block] = {}
    for unit in (*changers, *rest):
        if unit.kind in SHAPE_CHANGERS and unit.kind != "stem":
            _add(ordered, probe(unit.in_channels, unit.resolution))
        before = companion(unit)
        if before is not None:
            _add(ordered, before)
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
