"""The pages of `nas rank` and `nas taylor`: whole in themselves, with what was found."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nas.errors import StorageError
from nas.report import RankedNetwork, RankReport, TaylorReport, write_rank, write_taylor
from nas.report.taylor import grouped, heat_map
from nas.supernet.agreement import Agreement, Ceiling, Interval
from nas.supernet.taylor.findings import Finding, Share
from nas.supernet.taylor.heads import HeadSimilarity


def ranked(count: int = 6, **changes: Any) -> RankReport:
    networks = tuple(
        RankedNetwork(
            id=f"net{n}", band=n // 2, inherited_accuracy=0.5 + n / 20, inherited_loss=1 - n / 10,
            alone_accuracies=(0.6 + n / 20, 0.62 + n / 20)[: 1 + n % 2], params=1000 * (n + 1),
            macs=10**6 * (n + 1), depth=3 + n, latency_ms=0.5 if n else None,
        )
        for n in range(count)
    )  # fmt: skip
    agreements = (
        Agreement(
            predictor="inherited_accuracy", tau=Interval(value=0.7, low=0.5, high=0.8),
            spearman=None, tau_given_macs=0.4, in_band=0.6, regret={"1": 0.01},
        ),
        Agreement(
            predictor="macs", tau=None, spearman=None, tau_given_macs=None, in_band=None, regret={},
        ),
    )  # fmt: skip
    plain: dict[str, Any] = {
        "title": "the <run>", "about": "What was done.", "networks": networks,
        "agreements": agreements, "names": {"inherited_accuracy": "inherited", "macs": "MACs"},
        "ceiling": Ceiling(networks=3, noise=0.01, tau=0.8, retest_tau=0.7),
        "lines": ("predictor tau", "one <line>"),
    }  # fmt: skip
    return RankReport(**{**plain, **changes})


def importances() -> TaylorReport:
    rng = np.random.default_rng(0)
    importance = {"s1.b0.mb4d.hidden": rng.random(24), "stem.widths.0": np.zeros(3)}
    return TaylorReport(
        title="the <run>",
        about="What was measured.",
        importance=importance,
        kinds=dict.fromkeys(importance, "mlp.hidden"),
        shares=(Share(kind="mlp.hidden", stage="s1", channels=24, importance=1.0, removable=0.1),),
        findings=(Finding(claim="values are <kept>", here="so", verdict="reproduced"),),
        heads=(HeadSimilarity(slot="s2.b0.cga", kind="cga", heads=2, similarity=0.25),),
        lines=("some lines",),
    )


@pytest.mark.parametrize("odd", [{}, {"ceiling": None, "agreements": ()}], ids=["all", "little"])
def test_the_ranking_page_shows_every_network_and_is_whole_in_itself(
    tmp_path: Path, odd: dict[str, Any]
) -> None:
    content = ranked(**odd)
    text = write_rank(tmp_path, content).read_text()
    for words in (*(network.id for network in content.networks), "one &lt;line&gt;", "0.500 ms"):
        assert words in text, words
    assert not re.search(r"<script|(src|href)=\"(?!data:)", text) and "<run>" not in text
    for name in ("scatter.png", "predictors.png"):
        assert min(Image.open(tmp_path / name).convert("L").tobytes()) < 100


def test_the_taylor_page_has_findings_shares_heads_and_a_map(tmp_path: Path) -> None:
    text = write_taylor(tmp_path, importances()).read_text()
    for words in ("values are &lt;kept&gt;", "reproduced", "mlp.hidden", "s2.b0.cga", "0.250"):
        assert words in text, words
    assert not re.search(r"<script|(src|href)=\"(?!data:)", text)
    assert len(set(Image.open(tmp_path / "heatmap.png").convert("L").tobytes())) > 20


def test_the_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    pages = [write_rank(tmp_path / name, ranked()).read_bytes() for name in "ab"]
    maps = [write_taylor(tmp_path / name, importances()).read_bytes() for name in "cd"]
    assert pages[0] == pages[1] and maps[0] == maps[1]


def test_a_full_disk_keeps_the_old_page(tmp_path: Path, files_at_most: Any) -> None:
    path = write_rank(tmp_path, ranked())
    before = path.read_bytes()
    with files_at_most(10_000), pytest.raises(StorageError, match="Free space"):
        write_rank(tmp_path, ranked(4))
    assert path.read_bytes() == before


def test_groups_of_channels_hold_their_means() -> None:
    assert grouped(np.arange(32.0), 16).tolist() == [2 * n + 0.5 for n in range(16)]
    assert grouped(np.array([1.0, 3.0]), 4).tolist() == [1, 1, 3, 3]
    assert grouped(np.arange(3.0), 2).tolist() == [0.5, 1.5]


def test_a_map_of_nothing_that_matters_is_still_drawn() -> None:
    assert heat_map({"stem.widths.0": np.zeros(4)}).startswith(b"\x89PNG")
