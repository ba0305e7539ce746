"""Block strings: every kind by its name, read back exactly; networks as lists of them."""

import re
from collections.abc import Callable
from dataclasses import fields
from typing import Any

from nas.block.base import Block
from nas.block.kinds import Cga, Mb3d, Mb4d, PatchMerge
from nas.block.parts import (
    Attn,
    Downsample,
    Dw,
    Ffn,
    GroupAttn,
    Head,
    MbConv,
    Merge,
    Mlp,
    Pool,
    Stem,
    TokenMlp,
)
from nas.errors import ConfigError

BLOCKS: dict[str, type[Block]] = {
    cls.kind: cls for cls in (Stem, Mb4d, Mb3d, Cga, MbConv, Downsample, PatchMerge, Head)
}
PARTS: dict[str, type[Block]] = {
    cls.kind: cls
    for cls in (
        *(Stem, Downsample, MbConv, Head),
        *(Pool, Mlp, Attn, TokenMlp, Dw, Ffn, GroupAttn, Merge),
    )
}


def _pattern(cls: type[Block]) -> re.Pattern[str]:
    number = "(0|[1-9][0-9]{0,6})"
    text = cls.kind
    for item in fields(cls):
        if "words" in item.metadata:
            group = f"(?P<{item.name}>{'|'.join(item.metadata['words'])})"
            text += f"_{group}" if item.metadata["always"] else f"(?:_{group})?"
        else:
            many = f"(?:-{number})*" if str(item.type).startswith("tuple") else ""
            text += f"_{item.metadata['letter']}(?P<{item.name}>{number}{many})"
    return re.compile(text)


_PATTERNS: dict[str, re.Pattern[str]] = {
    kind: _pattern(cls) for kind, cls in {**BLOCKS, **PARTS}.items()
}


def parse(text: str) -> Block:
    """Return the block or part whose string is `text`; `str(parse(text)) == text`.

    Raises:
        ConfigError: the text is not exactly what `str` would write.
    """
    for kind, pattern in _PATTERNS.items():
        match = pattern.fullmatch(text)
        if match is None:
            continue
        cls = BLOCKS.get(kind) or PARTS[kind]
        block = cls(**_values(cls, match))
        if str(block) == text:
            return block
    known = ", ".join(sorted(_PATTERNS))
    raise ConfigError(
        f"{text!r} is not a block string. It is a kind ({known}) followed by its fields in order, "
        "for example mb4d_r56_c48_h192_p3."
    )


def _values(cls: type[Block], match: re.Match[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for item in fields(cls):
        raw = match[item.name]
        if raw is None:
            continue
        convert: Callable[[str], Any] = str if "words" in item.metadata else int
        if str(item.type).startswith("tuple"):
            values[item.name] = tuple(int(number) for number in raw.split("-"))
        else:
            values[item.name] = convert(raw)
    return values


def parse_network(texts: list[str] | tuple[str, ...]) -> tuple[Block, ...]:
    """Return the blocks of a network, checked to fit: stem first, head last, shapes chained.

    Raises:
        ConfigError: a string is wrong, or a block does not take what the one before gives.
    """
    blocks = tuple(parse(text) for text in texts)
    check_chain(blocks)
    return blocks


def check_chain(blocks: tuple[Block, ...]) -> None:
    """Raise ConfigError unless the blocks make one network, from stem to head."""
    if len(blocks) < 2 or blocks[0].kind != "stem" or blocks[-1].kind != "head":
        kinds = [block.kind for block in blocks]
        raise ConfigError(f"a network starts with a stem and ends with a head, but is {kinds}.")
    for before, after in zip(blocks, blocks[1:], strict=False):
        given = (before.out_channels, before.out_resolution)
        taken = (after.in_channels, after.resolution)
        if given != taken or after.kind not in BLOCKS or after.kind == "stem":
            raise ConfigError(
                f"{after} does not fit behind {before}, which gives {given[0]} channels "
                f"of side {given[1]}."
            )


def resize(blocks: tuple[Block, ...], image_size: int) -> tuple[Block, ...]:
    """Return the same network for another (square) image size."""
    resized, side = [], image_size
    for block in blocks:
        resized.append(block.at(side))
        side = resized[-1].out_resolution
    return tuple(resized)
