"""What an agent and its client agree on: versions, limits, the token, errors as JSON.

The form of every request and answer is in docs/formats.md.
"""

import hmac
import os
import re
import secrets
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nas.errors import ConfigError, DeviceError, NasError, StorageError, TryAgain

PROTOCOL = 3
PROTOCOL_HEADER, VERSION_HEADER = "Nas-Protocol", "Nas-Version"
MAX_JSON_BODY_BYTES = 1024 * 1024
MAX_ANSWER_BYTES = 64 * 1024 * 1024
MAX_VISITS, MAX_SAMPLES, MAX_LOOPS = 2000, 1000, 1_000_000
MAX_RUN_S = 120.0  # of expected work in one request
MAX_TIMEOUT_S, MAX_LOADS, MAX_PROCESSES = 600.0, 16, 16
MAX_TURN = 1_000_000
MAX_NAME = 2000
SHA256 = re.compile("[0-9a-f]{64}")
TOKEN = re.compile("[A-Za-z0-9._~+/=-]{16,512}")

# how an error travels: its name, and the status that goes with it
STATUS: Mapping[str, int] = {
    "ConfigError": 400,
    "WrongToken": 401,
    "NotThere": 404,
    "NoSession": 404,
    "NoFile": 404,
    "TryAgain": 409,
    "TooLarge": 413,
    "VersionSkew": 426,
    "DeviceError": 500,
    "StorageError": 507,
}
RAISED: Mapping[str, type[NasError]] = {
    "ConfigError": ConfigError,
    "WrongToken": ConfigError,
    "NotThere": ConfigError,
    "NoSession": DeviceError,
    "NoFile": DeviceError,
    "TryAgain": TryAgain,
    "TooLarge": ConfigError,
    "VersionSkew": DeviceError,
    "DeviceError": DeviceError,
    "StorageError": DeviceError,
}


class Refusal(NasError):
    """A request that is answered with an error of a kind of its own."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def error_answer(error: NasError) -> tuple[int, dict[str, Any]]:
    """Return the status and the body that carry an error to the client."""
    kind = "DeviceError"
    if isinstance(error, Refusal):
        kind = error.kind
    else:
        for known in (ConfigError, TryAgain, StorageError):
            if isinstance(error, known):
                kind = known.__name__
    return STATUS[kind], {"error": {"type": kind, "message": str(error)}}


def release() -> str:
    """Return what of the package's version must be the same on both sides: major.minor."""
    from nas import __version__

    return ".".join(__version__.split(".")[:2])


def skew(protocol: Any, version: Any, *, who: str) -> str | None:
    """Return what is wrong with the other side's versions, or None."""
    if (str(protocol), version) == (str(PROTOCOL), release()):
        return None
    return (
        f"{who} speaks protocol {str(protocol)[:20]} of hybrid-nas {str(version)[:20]}, this is "
        f"protocol {PROTOCOL} of hybrid-nas {release()}. Install the same version on both."
    )


# ---------------------------------------------------------------- the token
def read_token(path: Path | str) -> str:
    """Return the token in a file that only its owner can read.

    Raises:
        ConfigError: no such file, others can read it, or what it holds is no token.
    """
    path = Path(path)
    try:
        with open(path, "rb") as stream:
            mode = os.fstat(stream.fileno()).st_mode
            raw = stream.read(1024)
    except OSError as error:
        raise ConfigError(
            f"the token file {path} cannot be read: {error.strerror}. `nas agent --token-file "
            f"{path}` makes one; copy it to the other machine."
        ) from error
    if not stat.S_ISREG(mode) or stat.S_IMODE(mode) & 0o077:
        raise ConfigError(
            f"the token file {path} must be readable by its owner only, but its mode is "
            f"{stat.S_IMODE(mode):o}. Use `chmod 600 {path}`."
        )
    token = raw.decode("ascii", errors="replace").strip()
    if not TOKEN.fullmatch(token):
        raise ConfigError(
            f"a token is 16 to 512 letters, digits and ._~+/=-, but {path} holds something else. "
            "Delete the file; `nas agent` makes a new one."
        )
    return token


def make_token(path: Path | str) -> str:
    """Return the token in a file, which is made, with mode 600, if it is not there."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return read_token(path)
    except OSError as error:
        raise ConfigError(
            f"the token file {path} cannot be made: {error.strerror}. Choose another --token-file."
        ) from error
    with os.fdopen(descriptor, "w") as stream:
        stream.write(secrets.token_urlsafe(32) + "\n")
    return read_token(path)


def is_authorised(header: str | None, token: str) -> bool:
    """Return whether an Authorization header carries the token, in the same time for any other."""
    given = (header or "").encode("utf-8", errors="replace")
    return hmac.compare_digest(given, f"Bearer {token}".encode())
