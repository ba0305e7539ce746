"""Devices that are elsewhere: the verb agent, and --device, --plan and --results of others."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nas.cli import flags
from nas.cli.console import Options, emit, guarded, how_to_go_on, progress
from nas.errors import ConfigError, DeviceError

if TYPE_CHECKING:
    from nas.pipeline import Run, RunConfig
    from nas.pipeline.materials import Materials
    from nas.pipeline.remote import RemoteDevice

CHECK_NETWORKS = 20


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """The flags of `profile` that are about another device."""

    device: str | None
    plan: Path | None
    results: Path | None
    check_networks: int | None
    dry_run: bool

    def __post_init__(self) -> None:
        if self.results is not None and self.plan is None:
            raise ConfigError("--results needs --plan DIR: the folder whose files were timed.")
        if self.plan is not None and self.device is not None:
            raise ConfigError("--device measures at once and --plan does not; choose one of them.")
        if self.plan is not None and self.dry_run:
            raise ConfigError("--dry-run says what would be measured; leave it out with --plan.")
        if self.check_networks is not None and (self.plan is None or self.results is not None):
            raise ConfigError("--check-networks is for writing a --plan; leave it out here.")


def device_of(
    device: str | None, token_file: Path | None, target: str | None
) -> "RemoteDevice | None":
    """Return an agent's device, if one is named; None stands for this machine.

    Raises:
        ConfigError, DeviceError: as `RemoteDevice.at`; or there is a token and no device.
    """
    if device is None:
        if token_file is not None:
            raise ConfigError("--token-file is for --device http://HOST:PORT; give both.")
        return None
    from nas.pipeline.remote import RemoteDevice
    from nas.target import DEFAULT_TARGET

    return RemoteDevice.at(device, token_file, target or DEFAULT_TARGET)


def at_device(
    config: "RunConfig | None", device: str | None, token_file: Path | None
) -> "tuple[RunConfig | None, Callable[[Run], Materials | None]]":
    """Return settings and what makes a run's materials, for an agent's device if one is named."""
    if config is None and device is not None:
        return None, lambda run: None  # there is no run; opening it says so
    there = device_of(device, token_file, config.target if config is not None else None)
    if there is None or config is None:
        return config, lambda run: None
    return there.settings(config), there.materials


def check_files(plan: Path | None, results: Path | None, device: str | None) -> None:
    """Raise ConfigError where flags about files and times do not go together."""
    Elsewhere(device, plan, results, None, False)


@contextmanager
def going_on(device: str | None, options: Options) -> Iterator[None]:
    """Say with a device's error how to go on when the device is back."""
    try:
        yield
    except DeviceError as error:
        if device is None:
            raise
        raise DeviceError(f"{error}{how_to_go_on(options)}") from error


def profile_elsewhere(
    run: Path, config: "RunConfig | None", asked: Elsewhere, options: Options
) -> None:
    """Do what `profile` was asked to about files and times, and print it."""
    from nas.pipeline import elsewhere

    assert config is not None and asked.plan is not None  # profile may begin a run
    if asked.results is not None:
        result = elsewhere.read_times(run, config, asked.plan, asked.results)
    else:
        count = CHECK_NETWORKS if asked.check_networks is None else asked.check_networks
        bar = progress(options)("plan")
        result = elsewhere.write_files(config, asked.plan, check_networks=count, progress=bar)
    emit(result.to_json(), result.text(), options)
    result.raise_if_broken()


def agent(
    token_file: Annotated[
        Path, typer.Option("--token-file", help="Holds the token (mode 600); made if not there.")
    ],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8765,
    work: Annotated[
        Path, typer.Option("--work", help="Folder for the files that clients send.")
    ] = Path("runs/agent"),
    max_file_mb: Annotated[int, typer.Option(min=1, help="Largest file taken.")] = 512,
    max_disk_mb: Annotated[
        int, typer.Option(min=1, help="Above that, files used longest ago are deleted.")
    ] = 8192,
    max_processes: Annotated[
        int,
        typer.Option(
            min=1,
            max=16,
            help="Processes networks are timed in, each with the runtime and all of them in "
            "memory; winners want 8. Lower it on a small board.",
        ),
    ] = 8,
    verbose: flags.Verbose = 0,
    debug: flags.Debug = False,
) -> None:
    """Let --device of `nas` on another machine time networks on this one.

    Listens until it is stopped. It runs nothing but its own runtimes on ONNX files, for one
    client at a time who has the token. Nothing is encrypted: across a network, come through ssh.
    """
    options = Options(verbose=verbose, debug=debug)
    with guarded(options):
        from nas.pipeline.remote import serve

        megabyte = 1024 * 1024
        serve(
            work,
            token_file,
            (host, port),
            (max_file_mb * megabyte, max_disk_mb * megabyte),
            max_processes,
            ready=lambda address: print(f"listening on {address}", flush=True),
        )
