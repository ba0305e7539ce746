"""README.md of a winner: a model card for someone who has only this folder."""

import re
from collections.abc import Mapping
from typing import Any

from nas.block import parse_network
from nas.manifest import LATENCY, Accuracy, TargetResult, Winner
from nas.winner.promise import told_speed
from nas.winner.quantized import INT8_KINDS, int8_runtimes

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"

CARD = """\
---
library_name: timm
license: apache-2.0
pipeline_tag: image-classification
tags: [image-classification, timm, onnx, neural-architecture-search]
---

# {id}

An image classifier for {classes} classes and {side} x {side} images, found by neural architecture
search for a latency budget and trained on `{data}`. Its layers are blocks of EfficientFormer
(mb4d, mb3d), EfficientViT (cga) and MobileNetV2 (mbconv): {kinds}.

## What it promises and what was measured

{measured}

## Load it with timm

```python
{imports}

model = timm.create_model("local-dir:path/to/this/folder", pretrained=True).eval()
config = timm.data.resolve_model_data_config(model)
transform = timm.data.create_transform(**config, is_training=False)
# scores = model(transform(image)[None]), image being a PIL image in RGB
```

{load_note}`pretrained=True` is needed: without it timm makes the same network with random weights,
and says nothing.

## Run the ONNX file

```python
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("path/to/this/folder/model.onnx")
images = np.zeros({shape}, np.float32)  # normalised as below
(scores,) = session.run(None, {{session.get_inputs()[0].name: images}})  # (1, {classes})
```

{int8_note}## Normalisation

RGB. Resize the shorter side to {side} (bicubic), cut out the centre {side} x {side}, divide by 255,
subtract the mean `{mean}`, divide by the standard deviation `{std}`.
timm's transform above does all of it.{labels}

## Files

| file | what it is |
| --- | --- |
| `config.json`, `model.safetensors` | the network as timm loads it: {entrypoint} |
| `model.onnx` | the same network, {precision}, batch 1 |{int8}
| `winner.json` | architecture, blocks, promises, measurements, ancestry, sha256 of the files |

## Blocks

```
{blocks}
```

## Where it comes from

{ancestry}
"""

INT8_ROW = "| {files} | the same in int8 for {runtime}, calibrated on training images, batch 1 |"
INT8_NOTES = {
    "onnxruntime": "`model.int8.onnx` is run in the same way.\n\n",
    "openvino": """\
## Run the int8 file by OpenVINO

```python
import openvino

network = openvino.compile_model("path/to/this/folder/model.int8.xml", "CPU")
scores = network([images])[0]  # images as above
```

""",
}
NAS_NOTE = """\
The architecture is a list of blocks under the name `nas_hybrid`, which `import nas.network`
registers with timm (`pip install hybrid-nas`; `import nas` alone does not register it).
"""


def render(winner: Winner, config: Mapping[str, Any]) -> str:
    """Return the card.

    Args:
        winner: The manifest.
        config: timm's config.json of the same folder.
    """
    cfg = config["pretrained_cfg"]
    own = config["architecture"] == "nas_hybrid"
    blocks = parse_network(winner.blocks)
    kinds = [block.kind for block in blocks]
    counted = [f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds)]
    labels = (
        " Classes by number: `label_names` in `config.json`." if "label_names" in config else ""
    )
    return CARD.format(
        id=winner.id,
        classes=config["num_classes"],
        side=cfg["input_size"][-1],
        data=_plain(_data_name(winner.data)),
        kinds=", ".join(counted),
        measured=measured(winner),
        imports="import nas.network\nimport timm" if own else "import timm",
        load_note=NAS_NOTE if own else "",
        shape=(1, *cfg["input_size"]),
        mean=_numbers(cfg["mean"]),
        std=_numbers(cfg["std"]),
        labels=labels,
        entrypoint=_entrypoint(config),
        precision="fp32",
        int8_note="".join(INT8_NOTES[runtime] for runtime in int8_runtimes(winner.files)),
        int8="".join(f"\n{_int8_file(runtime)}" for runtime in int8_runtimes(winner.files)),
        blocks="\n".join(winner.blocks),
        ancestry=_ancestry(winner),
    )


def _entrypoint(config: Mapping[str, Any]) -> str:
    """Return timm's entrypoint, with its arguments where it is one of timm's own."""
    name = config["architecture"]
    arguments = config.get("model_args") or {}
    if name == "nas_hybrid" or not arguments:
        return f"`{name}`"
    text = ", ".join(f"{key}={value!r}" for key, value in sorted(arguments.items()))
    return f"`{name}({text})`"


def measured(winner: Winner) -> str:
    """Return the part of a card that `verify` brings up to date, between its two marks."""
    blocks = parse_network(winner.blocks)
    accuracy = winner.accuracy
    test = "not opened yet; run `nas verify`"
    if accuracy.test is not None:
        test = f"{100 * accuracy.test:.1f} % of {accuracy.test_images} images"
    rows = [
        ("accuracy, search split", f"{100 * accuracy.search:.1f} %"),
        ("accuracy, test split", test),
        *_int8_rows(accuracy),
        ("parameters", f"{sum(block.params for block in blocks):,}"),
        ("multiply-accumulates an image", f"{sum(block.macs for block in blocks):,}"),
    ]
    for metric, budget in winner.budgets.items():
        if not metric.startswith(LATENCY):
            rows.append((f"budget of {metric}", f"{budget:,.0f}"))
    for result in winner.targets:
        rows += _latency_rows(winner, result)
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    return f"{BEGIN}\n| what | value |\n| --- | --- |\n{table}\n{END}"


def _int8_rows(accuracy: Accuracy) -> list[tuple[str, str]]:
    """Return the rows about the int8 files; none where there is no such file."""
    rows = []
    for runtime, own in accuracy.int8.items():
        test = "not opened yet; run `nas verify`"
        if own.test is not None:
            test = f"{100 * own.test:.1f} % of {accuracy.test_images} images"
        name = f"accuracy in int8 by {runtime}"
        rows += [(f"{name}, search split", f"{100 * own.search:.1f} %")]
        rows += [(f"{name}, test split", test)]
    return rows


def _int8_file(runtime: str) -> str:
    """Return the row of a runtime's int8 file in the list of files."""
    files = ", ".join(f"`{name}`" for name in INT8_KINDS[runtime].files)
    return INT8_ROW.format(files=files, runtime=runtime)


def _latency_rows(winner: Winner, result: TargetResult) -> list[tuple[str, str]]:
    """Return the rows of one target: where, budget, prediction, measurement."""
    rows = [("**latency on**", f"`{_plain(result.target)}`")]
    budget = winner.latency_budget_ms(result.target)
    if budget is not None:
        of_p95 = " for the 95th percentile" if winner.statistic == "p95" else ""
        rows.append(("budget", f"{budget:.4g} ms{of_p95}"))
    if result.predicted_ms is not None:
        rows.append(("predicted by the latency table", f"{result.predicted_ms:.4g} ms"))
    if result.measured_ms is None or result.upper_ms is None:
        return [*rows, ("measured", "not yet; run `nas verify`")]
    text = f"{result.measured_ms:.4g} ms median, 95 % interval up to {result.upper_ms:.4g} ms"
    if result.p95_ms is not None:
        text += f", 95th percentile {result.p95_ms:.4g} ms"
    rows.append((f"measured (timing grade {result.grade})", text))
    speed = told_speed(result)
    if speed:
        rows.append(("machine when measured", speed))
    judged_ms = result.judged_ms(winner.statistic)
    if budget is not None and judged_ms is not None and judged_ms > budget:
        rows.append(("**over the budget by**", f"{100 * (judged_ms / budget - 1):.1f} %"))
    return rows


def update(text: str, winner: Winner) -> str:
    """Return a card's text with its measured part renewed; a card without the marks as it is."""
    pattern = re.compile(re.escape(BEGIN) + ".*?" + re.escape(END), re.DOTALL)
    return pattern.sub(lambda _: measured(winner), text, count=1)


def _ancestry(winner: Winner) -> str:
    """Return the list of names and digests that lead back to how it was made."""
    ancestry = winner.ancestry
    rows = [("study", f"{ancestry.study}, trial {ancestry.trial}")] if ancestry.study else []
    rows += [("pruned from (sha256)", ancestry.pruned_from)] if ancestry.pruned_from else []
    rows += [("supernet (sha256)", ancestry.supernet)] if ancestry.supernet else []
    rows += [("teacher (sha256)", ancestry.teacher)] if ancestry.teacher else []
    rows += [(f"latency table of {id} (sha256)", table) for id, table in ancestry.tables.items()]
    return "\n".join(f"- {_plain(name)}: `{_plain(value)}`" for name, value in rows)


def _data_name(data: str) -> str:
    """Return a data set's name without the folders above it, which are nobody else's business."""
    kind, colon, place = data.partition(":")
    return f"{kind}{colon}{place.rstrip('/').rpartition('/')[2]}" if data else "unnamed data"


def _plain(text: str) -> str:
    """Return text that cannot end the code span, the line or the table it stands in."""
    return re.sub(r"[`|\s\x00-\x1f]+", " ", text)


def _numbers(values: Any) -> str:
    return ", ".join(f"{value:.6g}" for value in values)
