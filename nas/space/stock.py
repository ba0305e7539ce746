"""Which networks plain timm can build: EfficientFormer's and EfficientViT's classes, as rules.

timm's two classes take one mlp ratio and pool size (EfficientFormer), or one list of query kernels
and fixed ratios (EfficientViT), for a whole network; that, and which numbers they fix, is what the
rules here say of our blocks. They need no torch: a search asks them of thousands of candidates.
(Read from timm 1.0.31, models/efficientformer.py and models/efficientvit_msra.py; the tests hold
them against the modules that timm makes.)
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from nas.block import Block, Cga, Head, Mb3d, Mb4d, PatchMerge, Stem
from nas.space.architecture import TRANSITIONS
from nas.space.search_space import SearchSpace, all_genes
from nas.space.spec import ROWS, TAIL_KIND, inner_values, make_block

Fits: TypeAlias = Callable[[Block], bool]
Codes: TypeAlias = npt.NDArray[np.int64]

ATTENTION = {"heads": 8, "key": 32, "value": 128, "resolution": 7}  # of EfficientFormer, always
FORMER = frozenset({"mb4d", "mb3d", "downsample"})
VIT = frozenset({"cga", "patch_merge"})
PATCH = 16  # EfficientViT's windows are those of a map of image side // 16
# Numbers that timm has once for a whole network.
SHARED = (frozenset({"mb4d.expand", "mb3d.expand"}), frozenset({"mb4d.pool"}),
          frozenset({"cga.kernels"}))  # fmt: skip


def is_stock(blocks: Sequence[Block]) -> bool:
    """Return whether a class of timm's, with plain arguments, is made of exactly these blocks.

    The same as `nas.network.stock.stock_args(blocks) is not None`, without torch.

    Args:
        blocks: A network, from stem to head.
    """
    inner = blocks[1:-1]
    kinds = {block.kind for block in inner}
    if kinds <= FORMER and inner and inner[-1].kind == TAIL_KIND:
        front = [block.kind for block in inner[: -_tail(inner)]]
        rules = _former_rules(inner) if TAIL_KIND not in front else []
    elif kinds <= VIT and _is_uniform(inner):
        rules = _vit_rules(inner, _sides_there(blocks))
    else:
        return False
    return any(all(map(fits, blocks)) for fits in rules)


def _tail(blocks: Sequence[Block]) -> int:
    """Return how many mb3d a network ends with."""
    count = 0
    while count < len(blocks) and blocks[-1 - count].kind == TAIL_KIND:
        count += 1
    return count


def _is_uniform(blocks: Sequence[Block]) -> bool:
    """Return whether all cga of a stage have the same heads, keys and window."""
    last: tuple[int, ...] | None = None
    for block in blocks:
        own = (block.heads, block.key, block.window) if isinstance(block, Cga) else None
        if own is not None and last is not None and own != last:
            return False
        last = own
    return True


def _sides_there(blocks: Sequence[Block]) -> dict[int, set[int]]:
    """Return which sides timm takes a feature map for, by the side that it has."""
    side = blocks[0].resolution // PATCH
    found: dict[int, set[int]] = {blocks[0].out_resolution: {side}}
    for block in blocks[1:-1]:
        if isinstance(block, PatchMerge):
            side = (side - 1) // 2 + 1
            found.setdefault(block.out_resolution, set()).add(side)
    return found


# ---------------------------------------------------------------- a rule for what may be shared
def _former_rules(blocks: Iterable[Block]) -> list[Fits]:
    """Return a rule for each mlp ratio and pool size that some of the blocks could have."""
    mlps = [block for block in blocks if isinstance(block, Mb4d | Mb3d)]
    # int(width * ratio) is the hidden width: where any ratio gives all of them, the largest of
    # hidden / width does, or the next number, since the product may be rounded down.
    exact = sorted({block.hidden / block.channels for block in mlps})
    ratios = [item for ratio in exact for item in (ratio, math.nextafter(ratio, math.inf))]
    pools = sorted({block.pool for block in mlps if isinstance(block, Mb4d)}) or [3]
    return [_former_fits(ratio, pool) for ratio in ratios for pool in pools]


def _former_fits(ratio: float, pool: int) -> Fits:
    def fits(block: Block) -> bool:
        if isinstance(block, Stem):
            width = block.widths[-1]
            return (block.widths, block.bias, block.act_last) == (
                (width // 2, width),
                1,
                1,
            ) and block.act == "relu"
        if isinstance(block, Head):
            return block.norm == "ln" and block.distilled == 1
        if isinstance(block, Mb4d | Mb3d):
            if block.act != "gelu" or int(block.channels * ratio) != block.hidden:
                return False
            if isinstance(block, Mb4d):
                return block.pool == pool
            return all(getattr(block, name) == value for name, value in ATTENTION.items())
        return block.kind == "downsample"

    return fits


def _vit_rules(blocks: Iterable[Block], sides: Mapping[int, set[int]]) -> list[Fits]:
    """Return a rule for each list of query kernels that some of the blocks could have."""
    every = sorted({block.kernels for block in blocks if isinstance(block, Cga)}) or [(5,)]
    return [_vit_fits(kernels, sides) for kernels in every]


def _vit_fits(kernels: tuple[int, ...], sides: Mapping[int, set[int]]) -> Fits:
    def fits(block: Block) -> bool:
        if isinstance(block, Stem):
            width = block.widths[-1]
            widths = (width // 8, width // 4, width // 2, width)
            given = (block.widths, block.bias, block.act_last, block.act)
            return width >= 8 and given == (widths, 0, 0, "relu")
        if isinstance(block, Head):
            return block.norm == "bn" and block.distilled == 0
        if isinstance(block, PatchMerge):
            before, out = block.channels, block.out
            given_merge = (block.hidden, block.squeeze, block.ffn, block.act)
            squeeze = max(8, (before + 4) // 8 * 8)  # timm's make_divisible of a quarter
            return given_merge == (4 * before, squeeze, (2 * before, 2 * out), "relu")
        if not isinstance(block, Cga):
            return False
        width, key, heads = block.channels, block.key, block.heads
        value = int(width / (key * heads) * key)  # as timm computes it, rounding included
        window, side = block.window, block.resolution
        return (
            block.hidden == (2 * width, 2 * width)
            and block.act == "relu"
            and block.kernels == kernels[:heads]
            and value * heads == width
            and all(min(window, side) == min(window, there) for there in sides.get(side, ()))
        )

    return fits


# ---------------------------------------------------------------- a whole space
class StockGenes:
    """The genes of a space among what plain timm can build, and which choices are not.

    Options that no stock network has are left out, and what timm has once for a whole network is
    one gene: the first of those that share it. What that leaves to be refused, `is_stock` refuses.
    (Where the options that share a number have different roundings, a network may be stock whose
    genes differ; it is not looked at.)

    Args:
        space: The space.

    Attributes:
        genes: {gene: options} to choose from; empty where nothing can be stock.
        is_empty: Whether no network of the space is stock, as far as options tell.
    """

    def __init__(self, space: SearchSpace) -> None:
        self._space = space
        stem, *_, head = space.blocks(space.smallest())
        assert isinstance(stem, Stem) and isinstance(head, Head)
        is_former = len(stem.widths) == 2
        every = [block for _, blocks in space.variants() for block in blocks]
        rules: list[Fits] = []
        if is_former and space.sides()[-1] == ATTENTION["resolution"]:
            rules = _former_rules(block for block in every if block.kind in FORMER)
        elif not is_former:
            rules = _vit_rules(every, self._sides())
        rules = [fits for fits in rules if fits(head)]
        self._has_tail = is_former
        narrowed = self._narrowed(rules)
        self.is_empty = not rules or not all(narrowed.values())
        self._followers: dict[str, str] = {}
        if not self.is_empty:
            self._tie(narrowed)
        self.genes: dict[str, tuple[Any, ...]] = {
            gene: options
            for gene, options in narrowed.items()
            if len(options) > 1 and gene not in self._followers and not self.is_empty
        }
        self._fixed = {gene: options[0] for gene, options in narrowed.items() if options}
        self._counts = [space.pricer(_misfit(fits)) for fits in rules]
        self._tails = space.pricer(lambda block: float(block.kind == TAIL_KIND))

    def full(self, choice: Mapping[str, Any]) -> dict[str, Any]:
        """Return a choice with an option for every gene of the space."""
        found = {**self._fixed, **{gene: choice[gene] for gene in self.genes if gene in choice}}
        followed = {gene: found[leader] for gene, leader in self._followers.items()}
        known = self._space.genes()
        return {gene: value for gene, value in {**found, **followed}.items() if gene in known}

    def canonical(self, choice: Mapping[str, Any]) -> dict[str, Any]:
        """Return a choice with inactive genes at their first options."""
        full = self.full(choice)
        same = self._space.choice(self._space.architecture(full))
        leaders = set(self._followers.values())
        found = {}
        for gene, options in self.genes.items():
            value = full[gene] if gene in leaders else same[gene]
            found[gene] = value if value in options else options[0]
        return found

    def is_stock(self, codes: Codes) -> npt.NDArray[np.bool_]:
        """Return which networks timm can build, booleans (n,), of codes (n, genes of the space)."""
        found = np.zeros(len(codes), dtype=bool)
        for count in self._counts:
            found |= count(codes) == 0
        if self._has_tail:
            found &= self._tails(codes) > 0
        return found

    def _sides(self) -> dict[int, set[int]]:
        side = self._space.image_size // PATCH
        found: dict[int, set[int]] = {}
        for number, own in enumerate(self._space.sides()):
            side = side if number == 0 else (side - 1) // 2 + 1
            found.setdefault(own, set()).add(side)
        return found

    def _narrowed(self, rules: Sequence[Fits]) -> dict[str, tuple[Any, ...]]:
        """Return each gene's options that some stock network may have."""
        seen = [self._seen(number, rules) for number in range(len(self._space.stages))]
        found = {}
        for gene, options in all_genes(self._space).items():
            prefix, _, name = gene.partition(".")
            number = int(prefix[1:]) - 1
            is_last = number == len(seen) - 1
            found[gene] = self._options(name, options, seen[number], is_last=is_last)
        return found

    def _seen(self, number: int, rules: Sequence[Fits]) -> dict[str, set[Any]]:
        """Return the widths, kinds and inner options of a stage's blocks that fit some rule."""
        stage = self._space.stages[number]
        found: dict[str, set[Any]] = {"kinds": set(), "width": set()}
        for kind in (*stage.used_kinds, *(stage.by if number else ())):
            for values, width in self._fitting(number, kind, rules):
                found["kinds"].add(kind)
                if kind not in TRANSITIONS:
                    found["width"].add(width)
                for name, value in values.items():
                    found.setdefault(f"{kind}.{name}", set()).add(value)
        return found

    def _options(
        self, name: str, options: tuple[Any, ...], seen: Mapping[str, set[Any]], *, is_last: bool
    ) -> tuple[Any, ...]:
        """Return those options of a stage's gene that were seen in blocks that fit."""
        kinds = seen["kinds"]
        if name == "tail":
            has_tail = is_last and self._has_tail and TAIL_KIND in kinds
            return tuple(option for option in options if (option > 0) == has_tail)
        if name == "by" or name.endswith(".kind"):
            return tuple(option for option in options if option in kinds)
        kind = name.partition(".")[0]
        if kind in ROWS and kind not in kinds:
            return options[:1]  # of a kind that is not used
        if name in seen:
            return tuple(option for option in options if option in seen[name])
        return options

    def _fitting(
        self, index: int, kind: str, rules: Sequence[Fits]
    ) -> Iterator[tuple[dict[str, Any], int]]:
        """Yield (inner options, width) of the versions of a kind in a stage that fit some rule."""
        space, stage = self._space, self._space.stages[index]
        sides = space.sides()
        is_move = kind in TRANSITIONS
        for width in stage.width:
            for before in space.stages[index - 1].width if is_move else (width,):
                for values in inner_values(stage, kind):
                    block = make_block(
                        kind,
                        ROWS[kind](values, stage, before, width),
                        side=sides[index - 1] if is_move else sides[index],
                        before=before,
                        width=width,
                        act=space.act,
                    )
                    if any(fits(block) for fits in rules):
                        yield values, width

    def _tie(self, narrowed: dict[str, tuple[Any, ...]]) -> None:
        """Let genes of what is shared follow the first of them, by the options in common."""
        for names in SHARED:
            members = [
                gene
                for gene in narrowed
                if gene.partition(".")[2] in names and self._is_used(gene, narrowed)
            ]
            if not members:
                continue
            common = tuple(
                option
                for option in narrowed[members[0]]
                if all(option in narrowed[gene] for gene in members)
            )
            if common:
                narrowed |= dict.fromkeys(members, common)
                self._followers |= dict.fromkeys(members[1:], members[0])

    def _is_used(self, gene: str, narrowed: Mapping[str, tuple[Any, ...]]) -> bool:
        prefix, kind, _ = gene.split(".")
        if kind == TAIL_KIND:
            return bool(max(narrowed[f"{prefix}.tail"]) > 0)
        return any(
            kind in options
            for name, options in narrowed.items()
            if name.startswith(f"{prefix}.b") and name.endswith(".kind")
        )


def _misfit(fits: Fits) -> Callable[[Block], float]:
    return lambda block: float(not fits(block))
