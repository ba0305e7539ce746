"""Who holds something: a process on a machine, and whether it is still there."""

import functools
import os
import socket
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """A process. `machine` tells machines and containers apart that have the same host name."""

    host: str
    machine: str
    pid: int

    @classmethod
    def here(cls) -> "Holder":
        """Return this process."""
        return cls(host=socket.gethostname()[:255], machine=_machine(), pid=os.getpid())

    @property
    def is_gone(self) -> bool:
        """Return whether the process is known to have ended; never so on another machine."""
        return self.machine == _machine() and not _is_running(self.pid)

    def __str__(self) -> str:
        return f"pid {self.pid} on {self.host}"


@functools.cache
def _machine() -> str:
    """Return what differs between machines, between boots and between containers."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()[:128]


def _is_running(pid: int) -> bool:
    import psutil

    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:
        return True
