"""A mistake in a space's YAML is named with its rule, its value and the way out."""

import copy
from pathlib import Path
from typing import Any

import pytest

from nas.errors import ConfigError, CorruptFile
from nas.files import packaged_folder, read_yaml
from nas.space import Architecture, SearchSpace


@pytest.fixture
def plain() -> dict[str, Any]:
    return copy.deepcopy(read_yaml(packaged_folder("search_spaces") / "tiny.yaml"))


def change(plain: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    *steps, last = [int(step) if step.isdigit() else step for step in path.split("/")]
    place: Any = plain
    for step in steps:
        place = place[step]
    place[last] = value
    return plain


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("stages/1/widht", [8], r"stages\.1\.widht.*did you mean 'width'"),
        ("stages/1/width", [40], r"multiple of head_dim, but 40 .* 32\. Use 32 or 64"),
        ("stages/1/width", [64, 32], "ascending"),
        ("stages/1/depth", [0, 1], "depth must list"),
        ("stages/1/depth", [1, 1000], "depth must list"),
        ("stages/1/kinds", ["mb4d", "mb3d"], "kinds may not hold mb3d.*Use tail"),
        ("stages/1/kinds", ["conv"], "kinds must list each of mb4d, cga"),
        ("stages/1/kinds", [], "kinds must list"),
        ("stages/1/head_dim", None, "a stage with cga needs head_dim"),
        ("stages/1/tail", [4], "smallest tail must fit the smallest depth"),
        ("stages/1/blocks", {"mb4d": {"expnd": [1]}}, "expnd.*did you mean 'expand'"),
        ("blocks/cga/kernels", [[4]], "kernels must be odd"),
        ("blocks/cga/key", "8", "key"),
        ("blocks/mb4d", None, "mb4d"),
        ("stages/1/kinds", ["mbconv"], "options of mbconv, which a stage uses"),
        ("blocks/mbconv", {"expand": [2], "kernel": [3, 4]}, "mbconv.kernel must be odd"),
        ("blocks/mbconv", {"expand": [2], "kernel": [3, 17]}, "mbconv.kernel must list"),
        ("blocks/mbconv", {"expand": [2], "se": [0.25, 2]}, "mbconv.se must list"),
        ("blocks/mbconv", {"expand": [2], "act_last": [2]}, "mbconv.act_last must list"),
        ("blocks/mb4d/expand", [], "expand must list"),
        ("stem/convs", 9, r"stem\.convs must be 1 to 5"),
        ("head/norm", "group", "head.norm must be layer or batch"),
        ("act", "swish", "act must be one of"),
        ("schema", 2, "schema must be 1"),
        ("stages", [], "at least one stage"),
        ("stages/0/width", [17], "multiple of 2"),
        ("image_size", "32", "image_size"),
    ],
)
def test_a_broken_rule_is_named(plain: dict[str, Any], path: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SearchSpace.from_plain(change(plain, path, value), source="mine.yaml")


def test_a_stage_overrides_the_options_of_a_kind(plain: dict[str, Any]) -> None:
    change(plain, "stages/0/blocks", {"mb4d": {"expand": [1, 3]}})
    genes = SearchSpace.from_plain(plain).genes()
    assert genes["s1.mb4d.expand"] == (1, 3)
    assert genes["s2.mb4d.expand"] == (2, 4)


def test_an_unknown_space_is_answered_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'hybrid'"):
        SearchSpace.load("hybird")
    with pytest.raises(ConfigError, match="none.yaml cannot be read"):
        SearchSpace.load(tmp_path / "none.yaml")


@pytest.fixture
def inverted(plain: dict[str, Any]) -> dict[str, Any]:
    """The tiny space with mbconv in its second stage."""
    plain["blocks"]["mbconv"] = {"expand": [2, 4], "kernel": [3, 5], "se": [0, 0.25]}
    return change(plain, "stages/1/kinds", ["mb4d", "mbconv", "cga"])


def test_an_inverted_residual_has_its_options_as_genes(inverted: dict[str, Any]) -> None:
    space = SearchSpace.from_plain(inverted)
    genes = space.genes()
    assert genes["s2.mbconv.kernel"] == (3, 5) and genes["s2.mbconv.se"] == (0, 0.25)
    assert "s2.mbconv.act_last" not in genes  # one option is no choice
    first = {gene: options[0] for gene, options in genes.items()}
    kinds = {f"s2.b{place}.kind": "mbconv" for place in range(4)}
    squeezed = {**first, **kinds, "s2.mbconv.se": 0.25, "s2.mbconv.kernel": 5, "s2.width": 64}
    for choice, text in (
        ({**first, **kinds}, "mbconv_r4_c32_h64_k3_s0_a0_relu"),
        (squeezed, "mbconv_r4_c64_h128_k5_s32_a0_relu"),
    ):
        architecture = space.architecture(choice)
        assert [str(block) for block in space.blocks(architecture)][-2] == text
        assert Architecture.from_json(architecture.to_json()) == architecture
        assert space.contains(architecture)


def test_the_largest_of_an_inverted_residual_has_the_largest_kernel(
    inverted: dict[str, Any],
) -> None:
    inverted["stages"][1] |= {"kinds": ["mbconv"], "tail": [0]}
    inverted["blocks"]["mbconv"]["act_last"] = [0, 1]
    space = SearchSpace.from_plain(inverted)
    hull = space.hulls()["s2.b0.mbconv"]
    assert str(hull) == "mbconv_r4_c64_h256_k5_s64_a1_relu"
    ends = [space.blocks(end)[-2] for end in (space.smallest(), space.largest())]
    assert [(end.kind, end.macs) for end in ends] == [("mbconv", 74_752), ("mbconv", 659_456)]


def test_too_many_inner_options_are_refused(plain: dict[str, Any]) -> None:
    many = [n / 10 for n in range(10, 70)]
    plain["blocks"]["patch_merge"] = {"expand": many, "expand_in": many, "expand_out": many}
    with pytest.raises(ConfigError, match="4096 combinations"):
        SearchSpace.from_plain(plain)


def test_choices_are_checked() -> None:
    space = SearchSpace.load("tiny")
    choice = space.choice(space.largest())
    with pytest.raises(ConfigError, match="unknown gene 's1.widht'; did you mean 's1.width'"):
        space.architecture({**choice, "s1.widht": 16})
    with pytest.raises(ConfigError, match=r"s1.width must be one of \[24, 32\], but is 17"):
        space.architecture({**choice, "s1.width": 17})
    del choice["s2.by"]
    with pytest.raises(ConfigError, match=r"lacks the active gene s2\.by"):
        space.architecture(choice)


def test_an_architecture_of_another_space_is_not_contained() -> None:
    tiny, other = SearchSpace.load("tiny"), SearchSpace.load("hybrid-64")
    assert not tiny.contains(other.smallest())
    wide = tiny.largest().to_json()
    wide["stages"][0]["blocks"][0]["hidden"] = 40
    with pytest.raises(ConfigError, match="stage 1 cannot be"):
        tiny.choice(Architecture.from_json(wide))


@pytest.mark.parametrize(
    "damage",
    [
        lambda a: a.pop("stages"),
        lambda a: a.update(schema=9),
        lambda a: a.update(extra=1),
        lambda a: a["stages"][0].update(width="16"),
        lambda a: a["stages"][0]["blocks"][0].update(kind="conv"),
        lambda a: a["stages"][0]["blocks"][0].update(hidden=1.5),
        lambda a: a["stages"][0]["blocks"][0].pop("pool"),
        lambda a: a.update(stages=3),
    ],
)
def test_a_damaged_architecture_is_refused(damage: Any) -> None:
    plain = SearchSpace.load("tiny").largest().to_json()
    damage(plain)
    with pytest.raises(CorruptFile, match="not an Architecture"):
        Architecture.from_json(plain)
