"""Which rows are wanted, as people write it: `latency_ms < 5 and params < 3e6`.

Python's parser reads a condition, and a walk over the few kinds of node that conditions need
answers it. Nothing is compiled, called or looked up anywhere but among the columns.
"""

import ast
import functools
import json
import math
import operator
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from nas.errors import ConfigError
from nas.files import MAX_DEPTH, unknown_key
from nas.study.metrics import LATENCY, find_metric, is_latency

if TYPE_CHECKING:
    import pandas

MAX_CHARACTERS = 2000
MEASURED = "measured "  # how the columns of measured costs begin

Kind: TypeAlias = Literal["a number", "text", "a condition", "nothing"]
Values: TypeAlias = npt.NDArray[Any]  # float64, bool, or objects that are all str

_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: np.add,
    ast.Sub: np.subtract,
    ast.Mult: np.multiply,
    ast.Div: np.true_divide,
}
_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
_REFUSED = {
    ast.Attribute: "a dot outside backticks",
    ast.Call: "a call",
    ast.Subscript: "square brackets",
    ast.NamedExpr: "an assignment",
}
_NUMBERS = bool | int | float | None
_TOKEN = re.compile(r"""'[^'\\]*'|"[^"\\]*"|`(?P<name>[^`]*)`|[^'"`\\]+|(?P<odd>.)""", re.DOTALL)


@dataclass(frozen=True, slots=True)
class _Value:
    """What a part of a condition stands for: one value a row, or one for all rows."""

    kind: Kind
    data: Any  # Values, or one float, str or bool


def select(
    frame: "pandas.DataFrame",
    *,
    where: str | None = None,
    sort: Sequence[str] = (),
    limit: int | None = None,
) -> "pandas.DataFrame":
    """Return the rows of `Study.to_frame()` that are wanted, in the order that is wanted.

    Args:
        frame: One row a trial.
        where: A condition with < <= > >= == != (chains too), and, or, not, + - * /, numbers,
            'text' and names of columns; those with dots, colons or spaces stand in backticks.
            `latency_ms` is the only target's. A number that is missing is unequal to every number
            and neither above nor below one; a text that is missing is ''.
        sort: Columns, the first one first; `-accuracy` is from the highest down. What is missing
            comes last, and ties stay in the order of the trials.
        limit: At most so many rows.

    Raises:
        ConfigError: an unknown column (the message has the nearest spelling), no condition, or a
            number compared with text.
    """
    if where is not None:
        frame = frame[_condition(where, frame)]
    for key in reversed(sort):  # stable, so that the first key decides last
        name = key.removeprefix("-").strip().strip("`")
        values = _column(frame[_find(name, list(frame.columns))])
        frame = frame.iloc[_order(values, is_falling=key.startswith("-"))]
    return frame if limit is None else frame.iloc[:limit]


def _order(values: _Value, *, is_falling: bool) -> npt.NDArray[np.intp]:
    """Return the positions of sorted values, stable, what is missing at the end."""
    _, ranks = np.unique(values.data, return_inverse=True)
    is_text = values.kind == "text"
    is_missing = values.data == "" if is_text else np.isnan(values.data)
    return np.lexsort([-ranks if is_falling else ranks, is_missing])


# ---------------------------------------------------------------- columns
def _find(name: str, columns: Sequence[str]) -> str:
    """Return the column a name means: its own, or the only latency's for `latency_ms`."""
    if name in columns:
        return name
    prefix = MEASURED if name.startswith(MEASURED) else ""
    if name.removeprefix(prefix) == LATENCY:
        group = [
            column.removeprefix(prefix)
            for column in columns
            if column.startswith(prefix) and is_latency(column.removeprefix(prefix))
        ]
        if group:
            return prefix + find_metric(LATENCY, group)
    raise ConfigError(unknown_key(name, [*columns, LATENCY], what="column"))


def _column(values: "pandas.Series[Any]") -> _Value:
    """Return a column as numbers (NaN: missing) or as text ("": missing, times in ISO 8601)."""
    if values.dtype.kind in "iufb":
        return _Value("a number", values.to_numpy(dtype=np.float64))
    items = [None if _is_missing(item) else item for item in values]
    if values.dtype == object and all(item is None for item in items):
        return _Value("nothing", np.full(len(items), np.nan))  # compares with either kind
    if values.dtype == object and all(isinstance(item, _NUMBERS) for item in items):
        return _Value("a number", np.array(items, dtype=np.float64))
    texts = np.empty(len(items), dtype=object)
    texts[:] = ["" if item is None else as_text(item) for item in items]
    return _Value("text", texts)


def _is_missing(item: Any) -> bool:
    return item is None or item != item  # NaN and NaT are unequal to themselves


def as_text(item: Any) -> str:
    """Return one value of a row as conditions see it: tuples as JSON "[7, 5, 3]", times as ISO."""
    if isinstance(item, tuple | list):
        return json.dumps(list(item))
    return item.isoformat(timespec="seconds") if hasattr(item, "isoformat") else str(item)


# ---------------------------------------------------------------- conditions
def _condition(text: str, frame: "pandas.DataFrame") -> npt.NDArray[np.bool_]:
    """Return which rows meet a condition, booleans of shape (n,)."""
    tree, quoted = _parse(text)

    def column(name: str) -> _Value:
        return _column(frame[_find(quoted.get(name, name), list(frame.columns))])

    with np.errstate(all="ignore"):  # x / 0 is infinite or missing, as in a data frame
        found = _Reader(text, column).read(tree)
    if found.kind != "a condition":
        raise ConfigError(
            f"--where needs a condition, but {_shown(text)} is {found.kind}. "
            "Compare it with something: accuracy > 0.9."
        )
    return np.broadcast_to(np.asarray(found.data, dtype=np.bool_), (len(frame),))


def _parse(text: str) -> tuple[ast.expr, Mapping[str, str]]:
    """Return a condition's tree, and the names that stood in backticks by what stands for them."""
    if len(text) > MAX_CHARACTERS:
        raise ConfigError(
            f"a condition has at most {MAX_CHARACTERS} characters, but this has {len(text)}."
        )
    stem = "column"
    while stem in text:
        stem += "_"
    quoted: dict[str, str] = {}
    pieces = []
    for token in _TOKEN.finditer(text):
        if token["odd"] is not None:
            rule = "has no backslash" if token["odd"] == "\\" else "closes what it opens"
            raise ConfigError(
                f"a condition {rule}, but {_shown(text)} has {token['odd']} at {token.start() + 1}."
            )
        if token["name"] is None:
            pieces.append(token[0])
        else:
            stand_in = f"{stem}{len(quoted)}"
            quoted[stand_in] = token["name"]
            pieces.append(f" {stand_in} ")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python's opinions on `1if x` are not for users
            return ast.parse("".join(pieces).strip(), mode="eval").body, quoted
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise ConfigError(
            f"{_shown(text)} cannot be read as a condition. Write it like latency_ms < 5 and "
            "state == 'COMPLETE': == compares, text stands in quotes, and names with dots, colons "
            "or spaces stand in backticks."
        ) from None


def _shown(text: str) -> str:
    return repr(text if len(text) <= 120 else f"{text[:117]}...")


def _like(value: _Value, kind: Kind) -> _Value:
    """Return a column without any values as one of the kind it meets."""
    if value.kind != "nothing" or kind == "nothing":
        return value
    if kind == "text":
        return _Value("text", np.full(len(value.data), "", dtype=object))
    return _Value("a number", value.data)


class _Reader:
    """Walks one condition; what is not on the list is refused, whatever it would have meant."""

    def __init__(self, text: str, column: Callable[[str], _Value]) -> None:
        self._text = text
        self._column = column

    def read(self, node: ast.expr, depth: int = 0) -> _Value:
        """Return what a node stands for."""
        if depth > MAX_DEPTH:
            raise ConfigError(
                f"a condition is at most {MAX_DEPTH} levels deep, but {_shown(self._text)} is "
                "deeper; write it shorter."
            )
        match node:
            case ast.Constant(value=value):
                return self._constant(node, value)
            case ast.Name(id=name):
                return self._column(name)
            case ast.UnaryOp(op=op, operand=operand) if not isinstance(op, ast.Invert):
                return self._signed(op, self.read(operand, depth + 1))
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
                parts = [self.read(part, depth + 1) for part in (left, right)]
                return _Value("a number", _ARITHMETIC[type(op)](*self._all("a number", parts)))
            case ast.BoolOp(op=op, values=values):
                parts = [self.read(part, depth + 1) for part in values]
                join = np.logical_and if isinstance(op, ast.And) else np.logical_or
                joined = functools.reduce(join, self._all("a condition", parts))
                return _Value("a condition", joined)
            case ast.Compare(left=left, ops=ops, comparators=others):
                parts = [self.read(part, depth + 1) for part in (left, *others)]
                return self._compare(ops, parts)
        raise self._refusal(node)

    def _constant(self, node: ast.AST, value: object) -> _Value:
        if isinstance(value, str):
            return _Value("text", value)
        if not isinstance(value, bool | int | float):
            raise self._refusal(node)
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if number == math.inf:
            raise ConfigError(f"numbers are finite, but {_shown(self._text)} has one beyond 1e308.")
        return _Value("a number", np.float64(number))

    def _signed(self, op: ast.unaryop, part: _Value) -> _Value:
        if isinstance(op, ast.Not):
            return _Value("a condition", np.logical_not(*self._all("a condition", [part])))
        (number,) = self._all("a number", [part])
        return _Value("a number", -number if isinstance(op, ast.USub) else number)

    def _compare(self, ops: Sequence[ast.cmpop], parts: Sequence[_Value]) -> _Value:
        """Return a < b <= c: every neighbouring pair holds."""
        result: Any = True
        for op, left, right in zip(ops, parts[:-1], parts[1:], strict=True):
            if type(op) not in _COMPARISONS:
                raise self._refusal(op)
            left, right = _like(left, right.kind), _like(right, left.kind)
            if "a condition" in (left.kind, right.kind) or left.kind != right.kind:
                raise ConfigError(
                    "numbers are compared with numbers and text with text, but "
                    f"{_shown(self._text)} compares {left.kind} with {right.kind}."
                )
            result = np.logical_and(result, _COMPARISONS[type(op)](left.data, right.data))
        return _Value("a condition", result)

    def _all(self, kind: Kind, parts: Sequence[_Value]) -> list[Any]:
        """Return the data of parts that must all be of one kind."""
        for part in [_like(part, kind) for part in parts]:
            if part.kind != kind:
                numbers = kind == "a number"
                rule = "+ - * / are for numbers" if numbers else "and, or, not are for conditions"
                raise ConfigError(f"{rule}, but {_shown(self._text)} has {part.kind} there.")
        return [part.data for part in parts]

    def _refusal(self, node: ast.AST) -> ConfigError:
        what = _REFUSED.get(type(node), f"a Python {type(node).__name__}")
        return ConfigError(
            "a condition is made of comparisons, and, or, not, + - * /, numbers, 'text' and names "
            f"of columns, but {_shown(self._text)} has {what}. A name with dots or colons stands "
            "in backticks: `gene.s1.width`."
        )
