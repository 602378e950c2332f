"""Files of a cache as objects: create-only, durable before they have a name, read with a limit."""

import contextlib
import errno
import os
import re
import stat
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from featurecache.errors import CorruptCacheError, DiskFullError, FeatureCacheError, UsageError

__all__ = ["MAX_ASSET_BYTES", "MAX_JSON_BYTES", "LocalObjects", "disk_errors"]

MAX_JSON_BYTES = 2**20
"""Largest JSON object, seals aside: a limit on what a stranger's cache can make us parse."""

MAX_ASSET_BYTES = 2**30
"""Largest asset: a tokenizer, a head."""

_SEGMENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


@contextlib.contextmanager
def disk_errors() -> Iterator[None]:
    """Turn "no space left" and "quota exceeded" into DiskFullError, "permission denied" into UsageError."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            hint = "free some space, then run the same command again: committed rows are kept"
            raise DiskFullError(f"cannot write: {os.strerror(error.errno)}", hint=hint) from error
        if error.errno in (errno.EACCES, errno.EROFS):
            raise UsageError(f"cannot write: {error}", hint="choose a directory that you may write to") from error
        raise


class LocalObjects:
    """A directory of create-only objects. An object is complete and on the disk before its name exists."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)

    def path(self, key: str) -> Path:
        """Where an object is. Raises UsageError for a key that could leave the directory."""
        segments = key.split("/")
        if not all(_SEGMENT.fullmatch(segment) for segment in segments):
            raise UsageError(f"{key!r} is not the name of an object")
        return self.root.joinpath(*segments)

    def exists(self, key: str) -> bool:
        """Whether the object is there."""
        return self.path(key).is_file()

    def size(self, key: str) -> int:
        """Bytes. Raises CorruptCacheError if the object is missing, a link, or behind one."""
        descriptor = self._open(key)
        try:
            return os.fstat(descriptor).st_size
        finally:
            os.close(descriptor)

    def get(self, key: str, *, limit: int = MAX_JSON_BYTES) -> bytes:
        """The whole object. Raises CorruptCacheError if it is missing, a link, behind one, or beyond the limit."""
        with os.fdopen(self._open(key), "rb") as file:
            if os.fstat(file.fileno()).st_size > limit:
                raise CorruptCacheError(f"{key} in {self.root} is larger than {limit:,} bytes")
            return file.read()

    def list(self, prefix: str = "") -> list[str]:
        """Sorted names directly below a prefix; empty if there is none. Hidden files are no objects."""
        try:
            names = os.listdir(self.path(prefix) if prefix else self.root)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(name for name in names if _SEGMENT.fullmatch(name))

    def put_new(self, key: str, data: bytes) -> bool:
        """Create an object durably. False, and nothing changed, if it stands already."""
        path, file = self.temporary()
        try:
            with disk_errors(), file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            return self.publish(path, key)
        finally:
            self.discard(path)

    def temporary(self) -> tuple[Path, BinaryIO]:
        """A new file under `_tmp/`, open for writing; `publish` or `discard` ends it."""
        path = self.root / "_tmp" / uuid.uuid4().hex
        with disk_errors():
            _make_directories(path.parent)
            return path, path.open("xb")

    def publish(self, path: Path, key: str) -> bool:
        """Give a synced temporary file its name, create-only. False if the name is taken; the file is gone then."""
        final = self.path(key)
        with disk_errors():
            os.chmod(path, 0o444)
            _make_directories(final.parent)
            try:
                os.link(path, final)
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK):
                    raise
                hint = "caches can be made on ext4, xfs, btrfs, zfs, tmpfs, APFS and NFS"
                raise FeatureCacheError(f"{self.root} is on a file system without hard links", hint=hint) from error
            finally:
                path.unlink()
            _sync_directory(final.parent)
        return True

    def discard(self, path: Path) -> None:
        """Remove a temporary file."""
        path.unlink(missing_ok=True)

    def sweep(self, *, seconds: float = 86_400.0) -> None:
        """Remove what killed runs left under `_tmp/`: files that nobody has written to for so long."""
        for name in self.list("_tmp"):
            path = self.root / "_tmp" / name
            with contextlib.suppress(FileNotFoundError):
                if path.lstat().st_mtime < time.time() - seconds:
                    path.unlink()

    def _open(self, key: str) -> int:
        path = self.path(key)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)  # never wait for a planted pipe
        except OSError as error:
            raise CorruptCacheError(f"cannot read {key} in {self.root}: {os.strerror(error.errno or 0)}") from None
        linked = any(parent.is_symlink() for parent in path.parents[: key.count("/")])
        if linked or not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise CorruptCacheError(f"{key} in {self.root} is not a plain file, or lies behind a link")
        return descriptor


def _make_directories(path: Path) -> None:
    """Like mkdir -p, but every new name is on the disk when it returns."""
    if path.is_dir():
        return
    _make_directories(path.parent)
    path.mkdir(exist_ok=True)
    _sync_directory(path.parent)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
