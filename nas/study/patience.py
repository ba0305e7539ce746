"""Waiting for a database that is locked or away, and its errors in our words, passwords masked."""

import logging
import re
import time
from collections.abc import Callable
from typing import TypeVar

from nas.errors import ConfigError, CorruptFile, NasError, StorageError, TryAgain

T = TypeVar("T")
logger = logging.getLogger(__name__)

OPEN_PATIENCE_S = 10.0
WRITE_PATIENCE_S = 60.0
_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 5.0

_FULL = ("disk is full", "disk i/o error", "readonly", "read-only", "unable to open database")
_CORRUPT = ("not a database", "malformed", "no such table")
_REFUSED = r'password|authentication|permission denied|(role|database) ".*" does not exist'
_RACE = (
    "already exists",
    "duplicate key",
    "unique constraint",
)  # somebody made the same table at the same moment


def mask_url(text: str) -> str:
    """Return a URL, or any text with URLs in it, with every password replaced by ***."""
    text = re.sub(r"(://[^:/?#@\s]*):.*@", r"\1:***@", text)
    return re.sub(r"(?i)((?:password|passwd|pwd|sslpassword)=)[^&\s]*", r"\1***", text)


def is_masked(url: str) -> bool:
    """Return whether a URL has lost its password to `mask_url`."""
    words = r"(?i)(?:password|passwd|pwd|sslpassword)=(?:\*|%2A){3}(?:&|$)"
    return re.search(r"://[^/?#@\s]*:(?:\*|%2A){3}@", url) is not None or (
        re.search(words, url) is not None
    )


def with_patience(action: Callable[[], T], *, url: str, patience_s: float) -> T:
    """Return what `action` returns, trying again while the database is locked or away.

    The action must be safe to repeat: a commit may have gone through although its answer was lost.

    Raises:
        TryAgain: still locked or away after `patience_s`.
        StorageError, CorruptFile, ConfigError: waiting would not help.
    """
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    end_s = time.monotonic() + patience_s
    pause_s = _FIRST_PAUSE_S
    while True:
        try:
            return action()
        except (StorageInternalError, SQLAlchemyError) as error:
            problem = _explain(error, url)
            if problem is None:
                raise
            if not isinstance(problem, TryAgain) or time.monotonic() + pause_s > end_s:
                raise problem from _cause(error)
            logger.warning("%s does not answer; trying again in %.1f s", mask_url(url), pause_s)
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


def _dbapi_error(error: BaseException) -> BaseException:
    """Return SQLAlchemy's error inside Optuna's, or the error itself."""
    from optuna.exceptions import StorageInternalError

    inner = error.__cause__ if isinstance(error, StorageInternalError) else None
    return error if inner is None else inner


def _cause(error: Exception) -> BaseException:
    """Return the innermost cause: SQLAlchemy's and the driver's words, not Optuna's guess."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    return cause


def _explain(error: Exception, url: str) -> NasError | None:
    """Turn a database error into ours; TryAgain: waiting may help; None: it is a bug."""
    from sqlalchemy.exc import InterfaceError, OperationalError

    words = mask_url(" ".join(str(_cause(error)).split()))
    where = mask_url(url)
    lower = words.lower()
    if any(word in lower for word in _CORRUPT):
        return CorruptFile(
            f"{where} is not a whole database ({words}). Restore it from a copy, or move it away "
            "and start the search again."
        )
    if any(word in lower for word in _FULL):
        return StorageError(
            f"cannot write {where} ({words}). Free space there or choose another --storage; "
            "every trial recorded before is safe."
        )
    if re.search(_REFUSED, lower):
        return ConfigError(f"the server refuses {where} ({words}). Check user, password and name.")
    temporary = isinstance(_dbapi_error(error), OperationalError | InterfaceError)
    if not temporary and not any(word in lower for word in _RACE):
        return None
    return TryAgain(
        f"the database {where} is locked or away ({words}). What was recorded is safe: run the "
        "same command with --resume when it is back."
    )
