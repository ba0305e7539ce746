"""Numbers as a reader wants them: three digits and a unit."""


def ms(value: float) -> str:
    """Return milliseconds with three significant digits: "0.214 ms", "14.3 ms", "1430 ms"."""
    return f"{significant(value)} ms"


def percent(share: float) -> str:
    """Return a share as percent: "98.6 %", "0.84 %", "113 %"."""
    value = 100 * share
    decimals = 0 if abs(value) >= 99.95 and value != 100 else 1 if abs(value) >= 1 else 2
    return f"{value:.{decimals}f} %"


def accuracy(share: float) -> str:
    """Return an accuracy as percent with one decimal, however small: "98.6 %"."""
    return f"{100 * share:.1f} %"


def count(value: int) -> str:
    """Return a count with three significant digits and k, M or G: "812", "1.23 M"."""
    scaled = float(value)
    for unit in ("", " k", " M"):
        if scaled < 999.5:
            return f"{value}" if unit == "" else f"{significant(scaled)}{unit}"
        scaled /= 1000
    return f"{significant(scaled)} G"


def significant(value: float) -> str:
    """Return a number with three significant digits and no exponent: "0.214", "14.3", "1430"."""
    if value == 0:
        return "0"
    decimals, size = 0, abs(value)
    while size < 99.95 and decimals < 9:
        size *= 10
        decimals += 1
    return f"{value:.{decimals}f}"
