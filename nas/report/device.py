"""A device study as one HTML file that asks for nothing else, with its pictures beside it too."""

from pathlib import Path

from nas.latency.device_study import DeviceStudy
from nas.report.device_figures import draw
from nas.report.page import data_uri, template, write_page

LATENCIES = "Median of the undisturbed samples."
WIDTHS = (
    "Latency over channels. Where a staircase was found, filled marks stand on the multiples "
    "that pay; hollow ones cost about as much as the next filled one, or more."
)


def write_device_report(folder: Path | str, study: DeviceStudy) -> Path:
    """Write FOLDER/index.html and its pictures as PNG files; return the page's path.

    The same study gives the same bytes. PNG files of an older page are deleted.

    Raises:
        StorageError: the folder cannot be made or the disk is full; an old page is intact.
    """
    observations = tuple(study.observations.values())
    pictures = draw(observations)
    page: str = template("device.html").render(
        study=study,
        observations=observations,
        captions={item.key: WIDTHS if item.steps else LATENCIES for item in observations},
        pictures={name: data_uri(png) for name, png in pictures.items()},
    )
    return write_page(Path(folder), page, pictures)
