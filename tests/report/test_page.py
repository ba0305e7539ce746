"""The report page: it says what happened, asks for nothing, and cannot be injected into."""

from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nas.block import parse_network
from nas.errors import ConfigError, StorageError
from nas.manifest import Accuracy, Ancestry, Int8Accuracy, TargetResult, Winner
from nas.report import (
    Candidate,
    Command,
    LossPoint,
    Prediction,
    ReportInput,
    pareto_front,
    prediction_errors,
    write_report,
)
from nas.report.page import stages, verdict
from nas.space import SearchSpace

TARGET = "onnxruntime-1.31.1_fp32_nchw_b1_t1@a-cpu-x86_64"


def a_winner(*, measured_ms: float | None = 0.21, upper_ms: float | None = None) -> Winner:
    space = SearchSpace.load("tiny").replace(num_classes=10)
    choice = space.largest()
    result = TargetResult(
        target=TARGET,
        predicted_ms=0.2,
        measured_ms=measured_ms,
        ci_high_ms=upper_ms or measured_ms,
        p95_ms=0.3 if measured_ms else None,
        grade="A" if measured_ms else None,
    )
    return Winner(
        architecture=choice.to_json(),
        blocks=tuple(str(block) for block in space.blocks(choice)),
        accuracy=Accuracy(search=0.986, test=0.981 if measured_ms else None),
        budgets={f"latency_ms:{TARGET}": 0.25},
        targets=(result,),
        ancestry=Ancestry(study="s", trial=3, supernet="ab" * 32, teacher="cd" * 32),
    )


def content(*, trials: int = 40, networks: int = 10, **changes: Any) -> ReportInput:
    generator = np.random.default_rng(0)
    latencies = generator.uniform(0.05, 0.25, trials)
    noise = generator.normal(0, 0.03, trials)
    measured = generator.uniform(0.1, 0.9, networks)
    winner = a_winner()
    candidates = [
        Candidate(id=f"{i:012x}", accuracy=float(0.5 + x + e), latency_ms=float(x))
        for i, (x, e) in enumerate(zip(latencies, noise, strict=True))
    ]
    candidates += [Candidate(id=winner.id, accuracy=0.9, latency_ms=0.2)] if trials else []
    values: dict[str, Any] = {
        "title": "quickstart",
        "space": "tiny",
        "data": "digits",
        "seed": 0,
        "target": TARGET,
        "device": "A CPU, 2 cores",
        "budget_ms": 0.25,
        "candidates": tuple(candidates),
        "winner": winner,
        "rejected": (a_winner(measured_ms=0.26, upper_ms=0.27),),
        "predictions": tuple(
            Prediction(
                id=f"{i:012x}", measured_ms=x, table_ms=1.01 * x, isolated_ms=1.1 * x, macs_ms=0.4
            )
            for i, x in enumerate(map(float, measured))
        ),
        "losses": tuple(LossPoint(step=10 * i, loss=2 / (1 + i)) for i in range(30)),
        "feasible_share": 0.34,
        "feasible_sample": 1000,
        "versions": {"torch": "2.14.1"},
        "machine": {"processor": "A CPU"},
        "commands": (Command(text="nas run --seed 0", purpose="do all of it again"),),
    }
    return ReportInput(**{**values, **changes})


class Page(HTMLParser):
    """Collects the tags, their attributes and the text of a page, and checks that tags close."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def page_of(folder: Path, rows: ReportInput) -> Page:
    return Page(write_report(folder, rows).read_text())


def test_the_page_says_what_was_promised_and_what_was_measured(tmp_path: Path) -> None:
    page = page_of(tmp_path, content())
    winner = a_winner()
    for text in (
        "it meets the budget of 0.250 ms",
        winner.id,
        "98.1 % on test, 98.6 % on the search split",
        "0.210 ms",
        "34.0 % of 1000",
        "A CPU, 2 cores",
        TARGET,
        "our table 1.0 % (1.0 %)",
        "sum of isolated parts 10.0 % (10.0 %)",
        "line through MACs",
        "Do all of it again",
        "nas run --seed 0",
        "2.14.1",
        *winner.blocks,
    ):
        assert text in page.text, text
    rejected = page.text.partition("not kept")[2]
    assert "0.270 ms" in rejected and "8.0 %" in rejected


def test_the_page_says_what_int8_files_score(tmp_path: Path) -> None:
    winner = a_winner()
    int8 = {
        "openvino": Int8Accuracy(search=0.984, test=0.979),
        "onnxruntime": Int8Accuracy(search=0.97),
    }
    winner = replace(winner, accuracy=replace(winner.accuracy, int8=int8))
    text = " ".join(page_of(tmp_path, content(winner=winner)).text.split())
    assert "accuracy in int8 by openvino97.9 % on test, 98.4 % on the search split" in text
    assert "accuracy in int8 by onnxruntime97.0 % on the search split" in text


def test_the_page_is_whole_in_itself_and_fetches_nothing(tmp_path: Path) -> None:
    page = page_of(tmp_path, content())
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "iframe", "object", "base", "form"}
    for _, attributes in page.tags:
        for name in ("src", "href", "srcset", "action"):
            assert (attributes.get(name) or "data:").startswith("data:")
    text = (tmp_path / "index.html").read_text()
    assert "url(" not in text and "@import" not in text
    policy = next(a for t, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in str(policy["content"])


def test_pictures_lie_beside_the_page_and_are_real(tmp_path: Path) -> None:
    write_report(tmp_path, content())
    assert {path.name for path in tmp_path.iterdir()} == {
        *("index.html", "pareto.png", "prediction.png", "loss.png"),
    }
    for path in tmp_path.glob("*.png"):
        with Image.open(path) as image:
            assert image.size > (600, 500)
            colours = image.convert("RGB").getcolors(1 << 20)
            assert colours is not None and len(colours) > 50


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_report(tmp_path / name, content())
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def one_trial() -> ReportInput:
    whole = content(networks=1)
    return replace(whole, candidates=whole.candidates[-1:], losses=whole.losses[:1])


@pytest.mark.parametrize("rows", [one_trial(), content(trials=500)], ids=["1 trial", "500 trials"])
def test_one_trial_and_five_hundred_give_a_page_one_can_read(
    tmp_path: Path, rows: ReportInput
) -> None:
    page = page_of(tmp_path, rows)
    assert a_winner().id in page.text.partition("Pareto front")[2]
    assert len([tag for tag, _ in page.tags if tag == "tr"]) < 80


def test_a_run_that_has_nothing_yet_gives_a_report_that_says_so(tmp_path: Path) -> None:
    empty = content(trials=0, networks=0, winner=None, rejected=(), losses=(), feasible_share=None)
    (tmp_path / "pareto.png").write_bytes(b"of an older report")
    page = page_of(tmp_path, empty)
    assert "No network has met the budget of 0.250 ms yet" in page.text
    assert "No architecture has been evaluated yet" in page.text
    assert [path.name for path in tmp_path.iterdir()] == ["index.html"]


EVIL = '<script>alert("1")</script>&amp; "\' $\\frac{'


def test_names_are_shown_and_never_become_markup(tmp_path: Path) -> None:
    rows = content(
        title=EVIL,
        space=EVIL,
        data=EVIL,
        target=EVIL,
        device=EVIL,
        created=EVIL,
        candidates=(Candidate(id=EVIL, accuracy=0.5, latency_ms=0.2),),
        predictions=(
            Prediction(id=EVIL, measured_ms=1.0, table_ms=1, isolated_ms=1, macs_ms=-0.1),
        ),
        winner=replace(
            a_winner(),
            ancestry=Ancestry(study=EVIL, trial=1, supernet=EVIL, tables={EVIL: EVIL}),
            targets=(TargetResult(target=EVIL, predicted_ms=0.2, measured_ms=0.2, grade=EVIL),),
        ),
        versions={EVIL: EVIL},
        machine={EVIL: EVIL},
        commands=(Command(text=EVIL, purpose=EVIL),),
    )
    page = page_of(tmp_path, rows)
    assert "script" not in {tag for tag, _ in page.tags}
    assert page.text.count(EVIL) >= 12


@pytest.mark.parametrize(
    ("winner", "text", "kept"),
    [
        (None, "No network has met", False),
        (a_winner(measured_ms=None), "not measured yet", False),
        (a_winner(measured_ms=0.24, upper_ms=0.249), "meets the budget", True),
        (a_winner(measured_ms=0.249, upper_ms=0.26), "over the budget of 0.250 ms by 4.0 %", False),
    ],
)
def test_the_first_sentence_is_the_promise(winner: Winner | None, text: str, kept: bool) -> None:
    said = verdict(content(winner=winner))
    assert text in said.text
    assert said.kept is kept


def test_the_picture_of_a_network_has_every_block_once_in_order() -> None:
    space = SearchSpace.load("hybrid")
    blocks = space.blocks(space.sample(np.random.default_rng(3)))
    rows = stages([str(block) for block in blocks])
    assert [row.name for row in rows] == [
        "stem",
        "stage 1",
        "stage 2",
        "stage 3",
        "stage 4",
        "head",
    ]
    assert parse_network(tuple(box.text for row in rows for box in row.boxes)) == blocks
    assert sum(box.share for row in rows for box in row.boxes) == pytest.approx(1)
    assert [row.shape for row in rows][-2:] == [f"{blocks[-1].in_channels} × 7 × 7", "1000 classes"]


def test_the_front_holds_what_no_other_beats() -> None:
    rows = [(0.3, 0.8), (0.1, 0.5), (0.2, 0.5), (0.2, 0.7), (0.3, 0.8), (0.4, 0.6)]
    given = [Candidate(id=str(i), accuracy=y, latency_ms=x) for i, (x, y) in enumerate(rows)]
    assert [row.id for row in pareto_front(given)] == ["1", "3", "0"]
    assert pareto_front([]) == ()


def test_errors_are_relative_to_what_was_measured() -> None:
    rows = [
        Prediction(id="a", measured_ms=2.0, table_ms=2.1, isolated_ms=3, macs_ms=2),
        Prediction(id="b", measured_ms=1.0, table_ms=0.9, isolated_ms=1, macs_ms=-1),
    ]
    errors = prediction_errors(rows)
    means = {key: round(error.mean, 9) for key, error in errors.items()}
    assert means == {"table_ms": 0.075, "isolated_ms": 0.25, "macs_ms": 1.0}
    assert errors["table_ms"].worst == pytest.approx(0.1)
    assert prediction_errors([]) == {}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Candidate(id="a", accuracy=98.1, latency_ms=1), "accuracy of candidate a"),
        (lambda: Candidate(id="a", accuracy=0.5, latency_ms=float("nan")), "latency_ms"),
        (lambda: LossPoint(step=3, loss=float("inf")), "loss of step 3"),
        (lambda: content(budget_ms=0.0), "budget_ms"),
        (lambda: content(feasible_share=34.0), "feasible_share"),
    ],
)
def test_numbers_that_cannot_be_are_refused_by_name(
    make: Callable[[], object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_a_folder_below_a_file_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="choose another"):
        write_report(tmp_path / "file" / "report", one_trial())


def test_a_full_disk_leaves_the_old_page_as_it_was(
    tmp_path: Path, files_at_most: Callable[[int], Any]
) -> None:
    path = write_report(tmp_path, one_trial())
    before = path.read_bytes()
    with files_at_most(10_000), pytest.raises(StorageError, match="Free space"):
        write_report(tmp_path, content())
    assert path.read_bytes() == before
