"""Names of costs: `latency_ms:<target>`, `params`, `macs`, `bytes`, or a table's own names."""

from collections.abc import Iterable, Sequence

from nas.errors import ConfigError

LATENCY = "latency_ms"
_SCALES = (("G", 1e9), ("M", 1e6), ("k", 1e3))


def latency_metric(target: str) -> str:
    """Return the name of a target's latency: `latency_ms:<target>`."""
    return f"{LATENCY}:{target}"


def is_latency(metric: str) -> bool:
    """Return whether a metric is a latency, with or without its target."""
    return metric == LATENCY or metric.startswith(f"{LATENCY}:")


def split_metric(metric: str) -> tuple[str, str]:
    """Return (metric, target); the target is "" for a cost that belongs to no device."""
    if metric.startswith(f"{LATENCY}:"):
        return LATENCY, metric[len(LATENCY) + 1 :]
    return metric, ""


def full_metric(metric: str, targets: Sequence[str]) -> str:
    """Return a metric's full name: a lone `latency_ms` means the only target there is.

    Raises:
        ConfigError: `latency_ms` alone while several targets are known.
    """
    if metric != LATENCY or not targets:
        return metric
    if len(targets) > 1:
        names = ", ".join(latency_metric(target) for target in targets)
        raise ConfigError(f"latency_ms alone needs one target, but there are several: {names}.")
    return latency_metric(targets[0])


def find_metric(metric: str, known: Iterable[str]) -> str:
    """Return the name under which `known` has a metric; a lone `latency_ms` is the only latency.

    Raises:
        ConfigError: nothing there has that name, or `latency_ms` could mean several.
    """
    names = list(known)
    if metric in names:
        return metric
    latencies = [name for name in names if is_latency(name)]
    if metric == LATENCY and len(latencies) == 1:
        return latencies[0]
    rule = "names several targets" if metric == LATENCY and latencies else "is no known metric"
    raise ConfigError(f"{metric} {rule}; choose from {', '.join(names) or 'none'}.")


def front_metrics(asked: str | Sequence[str] | None, known: Sequence[str]) -> tuple[str, ...]:
    """Return the costs a front compares, by their full names.

    Those asked for, else the latencies of all targets, else the first one known.

    Raises:
        ConfigError: nothing known has a name that is asked for.
    """
    latencies = [name for name in known if is_latency(name)]
    names = [asked] if isinstance(asked, str) else asked or latencies or known[:1]
    return tuple(dict.fromkeys(find_metric(name, known) for name in names))


def describe_cost(metric: str, value: float) -> str:
    """Return a cost for people to read: "4.21 ms", "3.2M", "1.5 MB"."""
    if is_latency(metric):
        return f"{value:.4g} ms"
    if metric == "bytes":
        for unit, scale in _SCALES:
            if value >= scale:
                return f"{value / scale:.4g} {unit}B"
        return f"{value:.4g} B"
    if metric in ("params", "macs"):
        for unit, scale in _SCALES:
            if value >= scale:
                return f"{value / scale:.4g}{unit}"
    return f"{value:.6g}"
