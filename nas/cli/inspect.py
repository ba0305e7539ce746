"""Verbs that only look: space, doctor."""

from textwrap import wrap
from typing import Annotated, Any

import typer

from nas.cli import flags
from nas.cli.console import Options, emit, guarded, table

DETAIL_WIDTH = 80


def space_list(json: flags.Json = False, debug: flags.Debug = False) -> None:
    """List the shipped search spaces with their size and the range of their networks."""
    options = Options(json=json, debug=debug)
    with guarded(options):
        from nas.space import SearchSpace

        spaces = [_summary(SearchSpace.load(name)) for name in SearchSpace.names()]
        header = ["space", "pixels", "architectures", "MMACs", "M params"]
        rows = [
            [
                space["name"],
                space["image_size"],
                f"{space['count']:.2g}",
                f"{space['smallest']['macs'] / 1e6:.3g} - {space['largest']['macs'] / 1e6:.3g}",
                f"{space['smallest']['params'] / 1e6:.2g} - {space['largest']['params'] / 1e6:.3g}",
            ]
            for space in spaces
        ]
        hint = "\n\nShow one with `nas space show NAME`; its YAML is the place to start your own."
        emit({"spaces": spaces}, table(header, rows) + hint, options)


def space_show(
    name: Annotated[str, typer.Argument(help="A shipped space or the path of a YAML file.")],
    json: flags.Json = False,
    debug: flags.Debug = False,
) -> None:
    """Show a space: its choices, how many architectures, its smallest and largest network."""
    options = Options(json=json, debug=debug)
    with guarded(options):
        from nas.space import SearchSpace

        space = SearchSpace.load(name)
        genes = {gene: list(values) for gene, values in space.genes().items()}
        rows = [
            [gene, " ".join(_plain(value) for value in values)] for gene, values in genes.items()
        ]
        summary = _summary(space)
        text = [
            f"{space.name}: {space.count:.3g} architectures, {space.image_size} px",
            "",
            table(["choice", "options"], rows),
            "",
            _network("smallest", summary["smallest"]),
            _network("largest", summary["largest"]),
        ]
        emit({**summary, "genes": genes}, "\n".join(text), options)


def _plain(value: Any) -> str:
    return "-".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def _summary(space: Any) -> dict[str, Any]:
    ends = {}
    for end, architecture in (("smallest", space.smallest()), ("largest", space.largest())):
        blocks = space.blocks(architecture)
        ends[end] = {
            "id": architecture.id,
            "params": sum(block.params for block in blocks),
            "macs": sum(block.macs for block in blocks),
            "blocks": [str(block) for block in blocks],
        }
    return {"name": space.name, "image_size": space.image_size, "count": space.count, **ends}


def _network(end: str, network: dict[str, Any]) -> str:
    head = f"{end} ({network['macs'] / 1e6:.3g} MMACs, {network['params'] / 1e6:.3g} M params):"
    return "\n  ".join([head, *network["blocks"]])


def doctor(json: flags.Json = False, debug: flags.Debug = False) -> None:
    """Say what this machine, its packages, its runtimes and its clock are good for."""
    options = Options(json=json, debug=debug)
    with guarded(options):
        from nas import pipeline

        found = pipeline.doctor()
        rows = [
            [check["check"], check["state"], line] if place == 0 else ["", "", line]
            for check in found["checks"]
            for place, line in enumerate(wrap(check["detail"], DETAIL_WIDTH))
        ]
        emit(found, table(["check", "", "detail"], rows), options)
