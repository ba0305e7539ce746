"""The page of a device study: it says what was measured, also what was not, and fetches nothing."""

import re
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from nas.errors import StorageError
from nas.latency.device_study import Comparison, DeviceStudy, Observation, OpShare, Row, Step
from nas.report import write_device_report
from nas.target import Device, Target

TARGET = Target(
    device=Device(cpu="made-up-cpu-1", arch="x86_64", cores=2),
    runtime="onnxruntime", version="1.0", precision="fp32", batch=1, threads=1,
)  # fmt: skip


def row(name: str, ms: float | None, shape: tuple[int, int, int] = (8, 14, 14), **more: Any) -> Row:
    times = {"median_ms": ms, "p10_ms": ms, "p90_ms": ms and 1.1 * ms, "spread": 0.01}
    values: dict[str, Any] = {"clean": 30, "taken": 41, "grade": "A" if ms else None, **times}
    return Row(name=name, text=f"the <{name}> one", shape=shape, **{**values, **more})


def observation(**changes: Any) -> Observation:
    plain = Observation(
        key="activations",
        title="Activations",
        asks="What does it cost?",
        rows=(row("relu", 1.0), row("gelu", 1.31), row("silu", None, problem="no such kernel")),
        comparisons=(
            Comparison(
                over="gelu", under="relu", subject="GELU against ReLU", ratio=1.31, low=1.28,
                high=1.34, grade="A", is_told=True,
            ),
            Comparison(over="silu", under="relu", subject="SiLU $x$ against ReLU", problem="no"),
        ),
        op_shares=(OpShare(group="softmax", ms=0.2, share=0.25, is_memory_bound=True),),
        advice=("Use ReLU here: GELU costs 1.31 x as much.",),
        notes=("A note.",),
    )  # fmt: skip
    return replace(plain, **changes)


def widths() -> Observation:
    rows = tuple(row(f"c{c}", 0.1 + -(-c // 16) / 10, (c, 14, 14)) for c in range(8, 65, 4))
    step = Step(side=14, multiple=16, saved=0.02, low=-0.1, high=0.1, cost=1.2, widths=9)
    return observation(
        key="widths", title="Widths", rows=rows, comparisons=(), steps=(step,), op_shares=()
    )


def study(*observations: Observation) -> DeviceStudy:
    return DeviceStudy(
        target=TARGET,
        settings={"samples": 30, "spread_s": 8.0},
        provenance={"created": "today", "machine": {"cpu": "A CPU"}, "versions": {"torch": "2.14"}},
        observations={item.key: item for item in observations},
    )


def test_the_page_has_advice_ratios_rows_and_what_failed(tmp_path: Path) -> None:
    text = write_device_report(tmp_path, study(observation(), widths())).read_text()
    for words in (
        TARGET.id, "Use ReLU here: GELU costs 1.31 x as much.", "1.28 - 1.34", "no such kernel",
        "&lt;relu&gt;", "30 of 41", "softmax", "25.0 %", "A note.", "A CPU", "2.14",
        "-10.0 % - 10.0 %",
    ):  # fmt: skip
        assert words in text, words


def test_the_page_is_whole_in_itself(tmp_path: Path) -> None:
    text = write_device_report(tmp_path, study(observation(), widths())).read_text()
    assert "default-src 'none'" in text
    assert not re.search(r"<script|(src|href)=\"(?!data:)", text)
    assert "<relu>" not in text


def test_each_observation_has_a_picture_that_is_not_blank_and_stale_ones_go(
    tmp_path: Path,
) -> None:
    write_device_report(tmp_path, study(observation(), widths()))
    names = {path.name for path in tmp_path.glob("*.png")}
    assert names == {"ratios.png", "activations.png", "widths.png"}
    for name in names:
        picture = Image.open(BytesIO((tmp_path / name).read_bytes())).convert("L")
        assert min(picture.tobytes()) < 100
    write_device_report(tmp_path, study(observation()))
    assert {path.name for path in tmp_path.glob("*.png")} == {"ratios.png", "activations.png"}


def test_the_same_study_gives_the_same_bytes(tmp_path: Path) -> None:
    one = write_device_report(tmp_path / "a", study(observation(), widths())).read_bytes()
    assert one == write_device_report(tmp_path / "b", study(observation(), widths())).read_bytes()


@pytest.mark.parametrize(
    "odd",
    [
        (),
        (observation(rows=(row("relu", None, problem="x"),), comparisons=(), op_shares=()),),
        (observation(is_noisy=True, comparisons=(), advice=("Too noisy.",)),),
    ],
    ids=["nothing asked", "nothing timed", "noisy"],
)
def test_a_study_with_little_in_it_still_has_a_page(
    tmp_path: Path, odd: tuple[Observation, ...]
) -> None:
    assert "Advice for the search space" in write_device_report(tmp_path, study(*odd)).read_text()


def test_a_full_disk_keeps_the_old_page(tmp_path: Path, files_at_most: Any) -> None:
    path = write_device_report(tmp_path, study(observation()))
    before = path.read_bytes()
    with files_at_most(10_000), pytest.raises(StorageError, match="Free space"):
        write_device_report(tmp_path, study(observation(), widths()))
    assert path.read_bytes() == before
