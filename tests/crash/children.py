"""Processes forked from this one, which is warm: a fresh interpreter takes seconds to load torch."""

import contextlib
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

SECONDS = 60
"""How long to wait for what takes one or two."""


def start(work: Callable[[], object], *, log: Path | None = None) -> int:
    """Fork a child that does `work` and ends with 0, the code of its SystemExit, or 99 for an error; returns its pid.

    It leads a process group of its own. Both its outputs go to `log`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # threads of ours that run at this moment hold no locks
        pid = os.fork()
    if pid:
        with contextlib.suppress(PermissionError, ProcessLookupError):
            os.setpgid(pid, pid)
        return pid
    code = 99
    try:
        os.setpgid(0, 0)
        _redirect(log or Path(os.devnull))
        code = _code_of(work)
    finally:
        os._exit(code)


def _redirect(log: Path) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)


def _code_of(work: Callable[[], object]) -> int:
    try:
        work()
    except SystemExit as ended:
        return int(ended.code or 0)
    except BaseException:  # noqa: BLE001 - told by the exit code
        traceback.print_exc()
        return 99
    return 0


def wait(pid: int) -> int:
    """The exit code of a child; minus the signal that killed it. One that takes a minute is killed, and its group."""
    stop = time.monotonic() + SECONDS
    while not has_ended(pid) and time.monotonic() < stop:
        time.sleep(0.002)
    if not has_ended(pid):
        os.killpg(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def has_ended(pid: int) -> bool:
    """Whether a child has ended by itself; it can still be waited for."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def kill(pid: int) -> int:
    """Kill a child as `kill -9` does; returns what `wait` does."""
    os.kill(pid, signal.SIGKILL)
    return wait(pid)


def kill_oneself() -> None:
    """For what must end right here."""
    os.kill(os.getpid(), signal.SIGKILL)
