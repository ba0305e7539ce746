"""A device with an agent in place of this machine: whatever a run measures is measured there."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from nas.errors import ConfigError
from nas.files import lock
from nas.latency import LatencyTable, ProfileConfig, find_table
from nas.latency.agent import Agent
from nas.latency.agent_http import AgentServer
from nas.latency.file_store import FileStore
from nas.latency.judge import Known
from nas.latency.protocol import make_token, read_token
from nas.latency.remote import RemoteAgent
from nas.manifest import TargetResult, Winner
from nas.pipeline.config import RunConfig
from nas.pipeline.materials import Materials, Stopwatch
from nas.pipeline.outcome import Outcome
from nas.pipeline.run import Progress, Run
from nas.pipeline.winners import verdict
from nas.target import DEFAULT_TARGET, Target
from nas.winner.latency import promised_speed, trusted
from nas.winner.verify import measure, verify_elsewhere


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteDevice:
    """A target on the device of an agent."""

    agent: RemoteAgent
    target: Target

    @classmethod
    def at(cls, url: str, token_file: Path | None, words: str) -> "RemoteDevice":
        """Return the device at `http://HOST:PORT`, as what words or a full id mean there.

        Raises:
            DeviceError: no agent answers, or one of another version; or it has no such target.
            ConfigError: the token file or the address breaks a rule.
        """
        if token_file is None:
            raise ConfigError("--device needs --token-file FILE: the token its agent was given.")
        agent = RemoteAgent(url, read_token(token_file))
        return cls(agent=agent, target=agent.target(words))

    def settings(self, config: RunConfig) -> RunConfig:
        """Return a run's settings with the device's own target.

        Raises:
            ConfigError: there are other targets as well.
        """
        config.only_target("--device")
        return replace(config, target=self.target.id)

    def materials(self, run: Run) -> Materials:
        """Return what a run is made of, all that is timed being timed on the device."""
        made = Materials(run)
        made.target = self.target
        made.benches = self.agent.bench

        def stopwatch(folder: Path) -> TargetResult:
            progress = run.progress("verify")
            return self.stopwatch(run.config.profile, made.table.known, progress)(folder)

        made.stopwatch = stopwatch
        return made

    def stopwatch(
        self, config: ProfileConfig, known: Known | None, progress: Progress
    ) -> Stopwatch:
        """Return what times an exported folder on the device, as `verify` does on this machine."""
        careful = config.for_winners()

        def timed(folder: Path) -> TargetResult:
            winner = Winner.load(folder)
            best = promised_speed(winner, self.target, known or Known())

            def once() -> TargetResult:
                with self.agent.bench(self.target, careful) as bench:
                    return measure(folder, self.target, careful, progress, known=best, bench=bench)

            return trusted(winner, once)

        return timed


def verify_on(
    folder: Path,
    device: str,
    token_file: Path | None,
    *,
    target: str | None,
    data: str | None,
    progress: Progress,
) -> Outcome:
    """Check one exported folder in a fresh process here, its latency on an agent's device."""
    winner = Winner.load(folder)
    there = RemoteDevice.at(device, token_file, target or DEFAULT_TARGET)
    path = find_table(there.target)
    known = LatencyTable.load(path).known if path is not None else None
    result = verify_elsewhere(
        folder,
        there.stopwatch(ProfileConfig(), known, progress),
        target=there.target,
        data_name=data or winner.data,
        progress=progress,
    )
    return verdict(winner, result)


def serve(
    work: Path,
    token_file: Path,
    address: tuple[str, int],
    max_bytes: tuple[int, int],
    max_processes: int,
    *,
    ready: Callable[[str], None],
) -> None:
    """Be an agent until stopped.

    Args:
        work: Folder for the files that come; held by one agent at a time.
        token_file: The token; made if it is not there.
        address: Host and port.
        max_bytes: Of one file, and of all files together.
        max_processes: The most that a client's networks are timed in.
        ready: Told where it listens.

    Raises:
        ConfigError: the address is taken, or the token file breaks a rule.
        TryAgain: another agent holds the folder.
    """
    token = make_token(token_file)
    with lock(work / ".lock"):
        store = FileStore(work / "files", max_file_bytes=max_bytes[0], max_store_bytes=max_bytes[1])
        agent = Agent(store, max_processes=max_processes)
        with AgentServer(agent, token, host=address[0], port=address[1]) as server:
            ready(f"http://{address[0]}:{server.port}, token in {token_file}")
            server.serve_forever()
