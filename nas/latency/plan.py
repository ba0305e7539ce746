"""What a profile would do, before it does it: the entries that are missing and their cost."""

import logging
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from nas.block import Block, parse
from nas.errors import ConfigError
from nas.latency.calibrate import to_fit_on
from nas.latency.interpolate import is_measured, to_measure
from nas.latency.measure import by_bytes, loadable_bytes
from nas.latency.profile_config import ProfileConfig
from nas.latency.recipes import Chain, Recipe, block_recipes, chain_name, parts_of, recipes
from nas.latency.rounds import prime_runs
from nas.latency.table import LatencyTable
from nas.latency.timing import SAMPLES_A_VISIT
from nas.space import SearchSpace
from nas.target import ONNX, Target

logger = logging.getLogger(__name__)

EXPORT_S = 0.2  # a part
JOIN_S, LOAD_S = 0.02, 0.05  # a chain or network; loaded into each process
JOIN_S_PER_GB, LOAD_S_PER_GB = 8.0, 1.5  # of weights
MS_PER_MMAC = 0.02  # what a core of these years takes; a device may be several times off
QUANTIZE_CHAIN_S, QUANTIZE_NETWORK_S = 1.0, 6.0  # to quantize it before it is loaded
REFERENCE_MS = 1.0  # the references of a visit
COLD_VISIT_MS = 4.0
WARM_S, WARM_ROUNDS = 3.0, 3  # to start; to warm up
MORE = 1.5  # rounds for chains that want more samples than others


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Entries needed in all, recipes of those to measure, networks to calibrate on, quiet seconds.

    `between` are entries that will lie between measured ones, unless a kind turns out to be off by
    too much (see nas/latency/interpolate.py): then they are measured too.
    """

    needed: tuple[str, ...]
    missing: tuple[Recipe, ...]
    between: tuple[str, ...]
    networks: int
    seconds: float


def plan(
    needed: SearchSpace | Iterable[Block],
    target: Target,
    path: Path | str,
    config: ProfileConfig | None = None,
) -> Plan:
    """Return what `profile` would measure and about how long it takes on a quiet machine.

    Raises:
        CorruptFile: the table that stands at `path` is damaged.
        ConfigError: it is of another target.
    """
    table = standing(Path(path), target)
    return plan_from(needed, table, config or ProfileConfig())


def standing(path: Path, target: Target) -> LatencyTable:
    """Return the table at `path`, or an empty one; raise ConfigError if it is of another target."""
    if not path.is_file():
        return LatencyTable(target=target, entries={}, path=str(path))
    table = LatencyTable.load(path)
    if not table.target.matches(target):
        raise ConfigError(
            f"the table {path} is of {table.target}, but {target} is to be measured. "
            "Choose another --table, or the target it is of."
        )
    return table


def plan_from(
    needed: SearchSpace | Iterable[Block], table: LatencyTable, config: ProfileConfig
) -> Plan:
    """Return the plan for a table that is already loaded."""
    fit, networks = None, 0
    seconds = 0.0
    if isinstance(needed, SearchSpace):
        fit, blocks = table.calibration(needed), needed.every_block()
    else:
        blocks = tuple(needed)
        if config.calibrate_on:
            logger.warning("calibrate_on has no effect: it needs a space, but blocks were given")
    by_part = recipes(blocks, copies=config.copies)
    wanted = to_measure(table, [parse(item.entry) for item in by_part], config.every)
    whole = block_recipes(blocks, fit.by_block if fit is not None else (), copies=config.copies)
    lacking = [item for item in by_part if not is_measured(table, item.entry)]
    missing = tuple(item for item in lacking if item.entry in wanted)
    missing += tuple(item for item in whole if item.entry not in table.entries)
    if isinstance(needed, SearchSpace) and (missing or fit is None):
        networks = config.calibrate_on
        seconds = networks_seconds(needed, config, table.target)
    seconds += sum(
        batch_seconds(batch, config, table.target)
        for batch in batches_of(missing, config, table.target)
    )
    return Plan(
        needed=tuple(item.entry for item in (*by_part, *whole)),
        missing=missing,
        between=tuple(item.entry for item in lacking if item.entry not in wanted),
        networks=networks,
        seconds=seconds,
    )


def chains_of(batch: Sequence[Recipe]) -> dict[str, Chain]:
    """Return every chain that these recipes need, by name."""
    chains = [chain for item in batch for chain, _ in item.terms]
    chains += [item.alone for item in batch]
    return {chain_name(chain): chain for chain in chains}


def batches_of(
    missing: Sequence[Recipe], config: ProfileConfig, target: Target
) -> list[list[Recipe]]:
    """Return the recipes in the batches that are timed together, of about the same length."""
    made = {item.entry: item for item in missing}
    sizes = {
        name: sum(part.bytes for chain in chains_of([item]).values() for part in chain)
        * config.held
        for name, item in made.items()
    }
    count = -(-len(made) // config.batch)
    at_most = -(-len(made) // max(count, 1))
    groups = by_bytes(sizes, loadable_bytes(target), at_most=at_most)
    return [[made[name] for name in names] for names in groups]


def session_seconds(
    config: ProfileConfig,
    target: Target,
    *,
    chains: Collection[Chain] = (),
    networks: Collection[Chain] = (),
) -> float:
    """Return how long a session should take that exports and times chains or whole networks."""
    timed = [*chains, *networks]
    exported = len({part for chain in timed for part in chain}) * (target.takes == ONNX)
    is_int8 = target.precision == "int8"
    quantize_s = is_int8 * (len(chains) * QUANTIZE_CHAIN_S + len(networks) * QUANTIZE_NETWORK_S)
    gigabytes = sum(part.bytes for chain in timed for part in chain) / 1e9
    join_s = len(timed) * JOIN_S + gigabytes * JOIN_S_PER_GB
    load_s = len(timed) * LOAD_S + gigabytes * LOAD_S_PER_GB
    loading_s = exported * EXPORT_S + join_s + load_s * config.held + quantize_s
    rounds = -(-config.samples // SAMPLES_A_VISIT)
    chains_ms = sum(_visit_ms(chain, config, target) + COLD_VISIT_MS for chain in chains)
    networks_ms = sum(_visit_ms(chain, config, target) for chain in networks)
    warm_s = WARM_S + (chains_ms + networks_ms) / 1e3 * WARM_ROUNDS
    timing_s = (chains_ms * MORE + networks_ms) / 1e3 * rounds
    return loading_s + warm_s + max(timing_s, config.spread_s)


def _visit_ms(chain: Chain, config: ProfileConfig, target: Target) -> float:
    run_ms = 0.02 + sum(part.macs for part in chain) * target.batch / 1e6 * MS_PER_MMAC
    sampled_ms = max(config.sample_ms, run_ms) * SAMPLES_A_VISIT
    return prime_runs(run_ms) * run_ms + sampled_ms + REFERENCE_MS


def networks_seconds(space: SearchSpace, config: ProfileConfig, target: Target) -> float:
    """Return how long it should take to time the networks that a space's fit rests on."""
    drawn = to_fit_on(space, config.calibrate_on, seed=config.seed)
    networks = [parts_of(space.blocks(architecture)) for architecture in drawn]
    return session_seconds(config, target, networks=networks) if networks else 0.0


def batch_seconds(batch: Sequence[Recipe], config: ProfileConfig, target: Target) -> float:
    """Return how long the session of one batch should take."""
    return session_seconds(config, target, chains=chains_of(batch).values())
