"""Who is at work on which shard, so that two extractions of one part share it instead of doing everything twice.

Claims are advice. Nothing that is read depends on them, and an error in them costs time, never data: a shard that two
runs computed is committed once.
"""

import contextlib
import functools
import json
import os
import socket
import time
from pathlib import Path

from featurecache.fingerprint import canonical_json
from featurecache.store.layout import PartSpec, Shard
from featurecache.store.objects import LocalObjects, disk_errors

__all__ = ["Claims", "count_claims"]

_STALE_SECONDS = 600.0
"""A claim that nobody has renewed for so long may be taken over from another machine."""
_RENEW_SECONDS = 30.0
_MAX_BYTES = 4096


class Claims:
    """The shards of one part that this process has set out to do."""

    def __init__(self, objects: LocalObjects, part: PartSpec) -> None:
        self._objects = objects
        self._folder = f"_claims/{part.prefix}"
        self._mine: dict[Shard, Path] = {}
        self._renewed = time.monotonic()
        self._me = {"host": _host(), "pid": os.getpid(), "started": _started(os.getpid())}

    def __enter__(self) -> "Claims":  # noqa: PYI034 - beartype cannot check Self
        return self

    def __exit__(self, *_: object) -> None:
        for shard in list(self._mine):
            self.release(shard)

    def take(self, shard: Shard) -> bool:
        """Claim a shard. False if another run that is alive has it."""
        key = f"{self._folder}/{shard.view:05d}-{shard.index:07d}.json"
        path = self._objects.path(key)
        if path.exists() and not _is_stale(path):
            return False
        with disk_errors():
            path.unlink(missing_ok=True)
        # whole or not at all, for one cut off by a kill or a full disk would keep others waiting
        if not self._objects.put_new(key, canonical_json(self._me)):
            return False
        self._mine[shard] = path
        return True

    def renew(self) -> None:
        """Say that this run is still alive; cheap enough to be called after every batch."""
        if time.monotonic() - self._renewed > _RENEW_SECONDS:
            self._renewed = time.monotonic()
            for path in self._mine.values():
                with contextlib.suppress(FileNotFoundError):
                    os.utime(path)

    def release(self, shard: Shard) -> None:
        """Give a shard back, done or not."""
        with contextlib.suppress(OSError):  # on a failing disk there is a worse error under way
            self._mine.pop(shard).unlink()


def count_claims(objects: LocalObjects) -> int:
    """How many shards runs that are alive are at work on, over all parts."""
    paths = (objects.root / "_claims").rglob("*.json")
    return sum(not _is_stale(path) for path in paths)


def _is_stale(path: Path) -> bool:
    """Whether the run that made a claim is gone, as far as can be told."""
    try:
        idle = time.time() - path.lstat().st_mtime
    except FileNotFoundError:
        return True
    try:
        with path.open("rb") as file:
            made = json.loads(file.read(_MAX_BYTES))
        gone = made["host"] == _host() and _started(int(made["pid"])) != made["started"]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):  # nothing that a run of ours has written
        return idle > _RENEW_SECONDS
    return gone or idle > _STALE_SECONDS


@functools.cache
def _host() -> str:
    """What process numbers belong to: this machine since it was started, and this container of it.

    Host names alone are not enough: those of containers are often alike.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{socket.gethostname()} {boot} {os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return socket.gethostname()


def _started(pid: int) -> str:
    """When a process of this machine began, in a form that only has to be compared; "" if it is gone.

    After a restart, a process number may belong to somebody else; together with this it is unique.
    """
    if not Path("/proc/self/stat").exists():
        return "alive" if _answers(pid) else ""
    try:
        fields = Path(f"/proc/{pid:d}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]


def _answers(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return True
