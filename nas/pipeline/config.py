"""RunConfig: every setting of a run, as it stands in runs/NAME/config.yaml."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nas.errors import ConfigError
from nas.files import into, parse_yaml, read_yaml, to_plain, unknown_key
from nas.latency import ProfileConfig
from nas.latency.check import MIN_NETWORKS
from nas.manifest import STATISTICS
from nas.pipeline.sample import RankConfig
from nas.search.options import MODES
from nas.space.loss_table import METHODS
from nas.study import mask_url
from nas.supernet import FitChoiceConfig, TrainConfig
from nas.target import DEFAULT_TARGET
from nas.winner.distill import DistillConfig

SCHEMA = 1
ENGINES = ("local", "ray")
IMPORTANCES = ("none", *METHODS)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """The settings of all stages.

    `latency_budget` is a time ("5ms") or a share ("50%") of the measured latency of the space's
    largest network; `budgets` are further ones ("params=3M"). `least_use` is the share of the
    latency budget a candidate must use: without it a search may return a network that leaves
    half of the budget idle because the accuracies are level. Before a search, `recalibrate_on`
    networks at that level are measured whole on each target, and what they take by what its table
    says multiplies all its prices if it is more than chance (0: none are). `other_targets` are
    further devices and runtimes whose latencies have budgets of their own
    (`latency_ms:<target>=5ms`); winners are measured on each, and `statistic` says what of a
    measurement a budget is compared with: the
    upper end of the median's interval, or the 95th percentile of all runs. `importance` says how
    the inner numbers of candidates are chosen: by allocation with losses from Taylor importance
    or measured ones ("sensitivity"), or as genes of their own ("none"). `mode` "front" looks for
    networks at all latencies up to the budget, whatever `least_use` says, and takes winners along
    the front of loss and latency. `stock` keeps the search to
    networks that a class of plain timm can be. `init` is the network
    whose weights the supernet starts from, a timm name or a folder that timm loads; none where it
    is None.

    `engine` says where candidates are scored: "local" is this machine, by `workers` processes
    or, with none, by the search itself; "ray" is up to `workers` Ray actors (0: eight), here or
    on the cluster at `address`. `batch` candidates are proposed at once, None: as many as the
    study was begun with. `timeout_s` is how long one evaluation may take.
    """

    schema: int = SCHEMA
    space: str = "hybrid-64"
    data: str = "digits"
    image_size: int | None = None
    target: str = DEFAULT_TARGET
    other_targets: tuple[str, ...] = ()
    table: str | None = None
    latency_budget: str = "50%"
    budgets: tuple[str, ...] = ()
    margin: float = 0.04
    least_use: float = 0.8
    recalibrate_on: int = 4
    evaluations: int = 300
    sampler: str = "predictor"
    mode: str = "best"
    engine: str = "local"
    address: str | None = None
    importance: str = "none"
    stock: bool = False
    statistic: str = "median"
    study: str = ""
    storage: str | None = None
    workers: int = 0
    batch: int | None = None
    timeout_s: float | None = None
    winners: int = 1
    candidates: int = 12
    check_networks: int = 10
    seed: int = 0
    threads: int | None = None
    teacher: str = "resnet10t"
    init: str | None = None
    profile: ProfileConfig = field(default_factory=lambda: ProfileConfig(calibrate_on=48))
    train: TrainConfig = field(default_factory=TrainConfig)
    fit_choice: FitChoiceConfig = field(default_factory=FitChoiceConfig)
    teach: DistillConfig = field(default_factory=DistillConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    rank: RankConfig = field(default_factory=RankConfig)

    def __post_init__(self) -> None:
        if self.schema != SCHEMA:
            raise ConfigError(f"config schema must be {SCHEMA}, but is {self.schema}.")
        for name in ("evaluations", "winners", "candidates"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, but is {getattr(self, name)}.")
        self._check_workers()
        if self.check_networks < MIN_NETWORKS:
            raise ConfigError(
                f"check_networks must be at least {MIN_NETWORKS}, but is {self.check_networks}."
            )
        if self.recalibrate_on < 0 or self.recalibrate_on == 1:  # one says nothing of chance
            raise ConfigError(
                f"recalibrate_on must be 0 or at least 2, but is {self.recalibrate_on}."
            )
        for name in ("margin", "least_use"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} must be 0 to below 1, but is {getattr(self, name)}.")
        self._check_words()
        if self.margin + self.least_use >= 1:
            raise ConfigError(
                f"margin and least_use leave no room below the budget: {self.margin} + "
                f"{self.least_use} must stay below 1."
            )

    def _check_workers(self) -> None:
        if self.engine not in ENGINES:
            raise ConfigError(f"engine must be one of {', '.join(ENGINES)}, but is {self.engine}.")
        if self.address is not None and self.engine != "ray":
            raise ConfigError(f"address {self.address} is a Ray cluster's: add --engine ray.")
        if self.workers < 0:
            raise ConfigError(f"workers must be at least 0, but are {self.workers}.")
        if self.batch is not None and self.batch < 1:
            raise ConfigError(f"batch must be at least 1, but is {self.batch}.")
        if self.timeout_s is not None and not self.timeout_s > 0:
            raise ConfigError(f"timeout_s must be above zero, but is {self.timeout_s}.")

    def _check_words(self) -> None:
        words = (("importance", IMPORTANCES), ("statistic", STATISTICS), ("mode", MODES))
        for name, known in words:
            if getattr(self, name) not in known:
                raise ConfigError(
                    f"{name} must be one of {', '.join(known)}, but is {getattr(self, name)!r}."
                )
        if self.stock and self.importance != "none":
            raise ConfigError(
                "stock networks have one ratio for all their blocks, so their inner numbers cannot "
                f"be allocated, but importance is {self.importance!r}. Take stock or importance."
            )
        if self.mode == "front" and self.importance != "none":
            raise ConfigError(
                "mode front looks for networks at all latencies, but importance "
                f"{self.importance!r} fills the budget. Take front or importance."
            )
        targets = [self.target, *self.other_targets]
        if len(set(targets)) < len(targets):
            raise ConfigError(f"each target stands once, but they are {' '.join(targets)}.")

    def only_target(self, way: str) -> str:
        """Return the one target there is, where `way` of measuring knows one device.

        Raises:
            ConfigError: there are several; times of one must not stand for another.
        """
        if self.other_targets:
            raise ConfigError(
                f"{way} measures on one target, but there are {self.target}, "
                f"{', '.join(self.other_targets)}. Name one --target."
            )
        return self.target

    def reads(self, stage: str) -> dict[str, Any]:
        """Return the settings a stage depends on, as plain values."""
        names = READS[stage]
        if stage == "train" and self.train.needs_teacher:
            names += ("teacher", "teach")
        if stage == "search":  # absent in runs begun before there were such settings
            names += ("stock",) if self.stock else ()
            names += ("mode",) if self.mode != "best" else ()
        return {name: to_plain(getattr(self, name)) for name in names}


READS: dict[str, tuple[str, ...]] = {
    "profile": ("space", "data", "image_size", "target", "table", "profile", "check_networks"),
    "train": ("space", "data", "image_size", "init", "train", "seed", "threads"),
    "importance": (
        "space", "data", "image_size", "init", "train", "seed", "threads", "importance",
    ),
    "search": (
        "latency_budget", "budgets", "margin", "least_use", "evaluations", "sampler",
        "importance", "statistic", "target", "other_targets", "seed",
    ),
    "recalibrate": (
        "recalibrate_on", "latency_budget", "budgets", "margin", "least_use", "importance", "mode",
        "stock", "target", "other_targets", "seed",
    ),
    "distill": ("teacher", "teach", "distill", "winners", "candidates", "seed", "threads"),
    "export": (),
    "verify": ("target",),
    "report": (),
}  # fmt: skip


def differences(before: dict[str, Any], after: dict[str, Any], prefix: str = "") -> str:
    """Return "key: old -> new" for every setting that differs, joined by commas."""
    changed = []
    for key in before.keys() | after.keys():
        old, new = before.get(key), after.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            changed.append(differences(old, new, f"{prefix}{key}."))
        elif old != new:
            changed.append(f"{prefix}{key}: {old} -> {new}")
    return ", ".join(sorted(filter(None, changed)))


def without_password(config: RunConfig) -> RunConfig:
    """Return settings as files keep them: the database's address without its password."""
    if config.storage is None:
        return config
    return dataclasses.replace(config, storage=mask_url(config.storage))


def preset(name: str) -> Path:
    """Return the path of a shipped configuration, "quickstart" for example."""
    return Path(__file__).with_name(f"{name}.yaml")


def load(path: Path | str | None, overrides: Sequence[str] = ()) -> RunConfig:
    """Return the settings of a YAML file (all defaults where None) with `key.sub=value` words.

    Raises:
        ConfigError: an unknown key (with the nearest spelling) or a value that breaks a rule.
    """
    plain = {} if path is None else read_yaml(path)
    if not isinstance(plain, dict):
        raise ConfigError(f"{path}: a configuration is a mapping of keys, but is {plain!r:.80}.")
    for word in overrides:
        apply(plain, word)
    return into(RunConfig, plain, source=str(path or "settings"))


def apply(plain: dict[str, Any], word: str) -> None:
    """Set one `key.sub=value` in plain settings, the value read as YAML."""
    key, equals, text = word.partition("=")
    if not equals:
        raise ConfigError(f"an override is key=value, for example train.lr=0.002, but is {word!r}.")
    *steps, last = key.split(".")
    place = plain
    for step in steps:
        inner = place.setdefault(step, {})
        if not isinstance(inner, dict):
            raise ConfigError(unknown_key(key, [f.name for f in dataclasses.fields(RunConfig)]))
        place = inner
    place[last] = parse_yaml(text, source=key)
