"""The error tree: what is drawn is what there is, and each has its exit code."""

import inspect
import pickle
import re

import pytest

from nas import errors

CLASSES = {
    name: value
    for name, value in vars(errors).items()
    if inspect.isclass(value) and issubclass(value, errors.NasError)
}


def drawn() -> dict[str, int]:
    """Return name -> exit code as drawn at the top of errors.py."""
    lines = re.findall(r"^(?:[├└]── )?(\w+) +(\d+) ", errors.__doc__ or "", re.MULTILINE)
    return {name: int(code) for name, code in lines}


def test_the_drawn_tree_is_the_real_one() -> None:
    assert drawn() == {name: value.exit_code for name, value in CLASSES.items()}


def test_exit_codes_are_the_documented_ones() -> None:
    assert {value.exit_code for value in CLASSES.values()} == {1, 2, 3, 4, 5, 6, 7, 75}


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (errors.ConfigError, ValueError),
        (errors.CorruptFile, ValueError),
        (errors.InfeasibleBudget, ValueError),
        (errors.DeviceError, RuntimeError),
        (errors.StorageError, OSError),
    ],
)
def test_errors_are_also_what_python_users_expect(error: type, kind: type) -> None:
    assert issubclass(error, kind)


def test_an_infeasible_budget_carries_the_numbers() -> None:
    error = errors.InfeasibleBudget("no", metric="latency_ms", budget=5.0, smallest=7.5)
    assert (str(error), error.metric, error.budget, error.smallest) == ("no", "latency_ms", 5, 7.5)


def test_an_infeasible_budget_takes_its_numbers_to_another_process() -> None:
    error = errors.InfeasibleBudget("no", metric="latency_ms", budget=5.0, smallest=7.5)
    back = pickle.loads(pickle.dumps(error))
    assert (str(back), back.metric, back.budget, back.smallest) == ("no", "latency_ms", 5, 7.5)


@pytest.mark.parametrize("error", [e for e in CLASSES.values() if e is not errors.InfeasibleBudget])
def test_an_error_survives_the_way_to_another_process(error: type[errors.NasError]) -> None:
    back = pickle.loads(pickle.dumps(error("no")))
    assert (type(back), str(back)) == (error, "no")
