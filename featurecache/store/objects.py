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
    """Turn what a disk answers into errors for users.

    "No space left" and "quota exceeded" become DiskFullError, "permission denied" UsageError, others FeatureCacheError.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            hint = "free some space, then run the same command again: committed rows are kept"
            raise DiskFullError(f"cannot write: {os.strerror(error.errno)}", hint=hint) from error
        if error.errno in (errno.EACCES, errno.EROFS):
            raise UsageError(f"cannot write: {error}", hint="choose a directory that you may write to") from error
        hint = "see to the disk, or its connection, then run the same command again: committed rows are kept"
        raise FeatureCacheError(f"cannot write: {error}", hint=hint) from error


class LocalObjects:
    """A directory of create-only objects. An object is complete and on the disk before its name exists."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)
        self._durable: set[Path] = set()

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

    def open(self, key: str) -> BinaryIO:
        """The object as a stream. Raises CorruptCacheError if it is missing, a link, or behind one."""
        return os.fdopen(self._open(key), "rb")

    def list(self, prefix: str = "") -> list[str]:
        """Sorted names directly below a prefix; empty if there is none. Hidden files are no objects."""
        try:
            names = os.listdir(self.path(prefix) if prefix else self.root)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(name for name in names if _SEGMENT.fullmatch(name))

    def sizes(self) -> Iterator[int]:
        """Bytes of every plain file but those under `_tmp` and `_claims`, at any depth.

        No link is followed. What is gone before it is looked at, or cannot be listed, does not count: a run may be
        under way.
        """
        folders = [self.root]
        while folders:  # a stranger's folders may be nested deeper than calls can be
            folder = folders.pop()
            with contextlib.suppress(OSError), os.scandir(folder) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        if folder != self.root or entry.name not in ("_tmp", "_claims"):
                            folders.append(folder / entry.name)
                    elif entry.is_file(follow_symlinks=False):
                        with contextlib.suppress(FileNotFoundError):
                            yield entry.stat(follow_symlinks=False).st_size

    def put_new(self, key: str, data: bytes) -> bool:
        """Create an object durably. False, and nothing changed, if it stands already."""
        path, file = self.temporary()
        try:
            with disk_errors(), file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            self.discard(path)
            raise
        return self.publish(path, key)

    def temporary(self) -> tuple[Path, BinaryIO]:
        """A new file under `_tmp/`, open for writing; `publish` or `discard` ends it."""
        path = self.root / "_tmp" / uuid.uuid4().hex
        with disk_errors():
            self._make_directory(path.parent)
            return path, path.open("xb")

    def publish(self, path: Path, key: str) -> bool:
        """Give a synced temporary file its name, create-only. False if the name is taken.

        Either way the name is on the disk, and the temporary file is gone.
        """
        try:
            final = self.path(key)
            with disk_errors():
                os.chmod(path, 0o444)
                self._make_directory(final.parent)
                created = self._link(path, final)
        finally:
            self.discard(path)
        with disk_errors():
            _sync_directory(final.parent)  # also of a name that was taken: its writer may have been killed before this
        return created

    def discard(self, path: Path) -> None:
        """Remove a temporary file; one that cannot be removed now is left for `sweep`."""
        with contextlib.suppress(OSError):
            path.unlink()

    def sync(self, prefix: str) -> None:
        """Make the names directly below a prefix survive a power cut, whichever run made them."""
        with disk_errors():
            self._make_directory(self.path(prefix))
            _sync_directory(self.path(prefix))

    def sweep(self, *, seconds: float = 86_400.0) -> None:
        """Remove what killed runs left under `_tmp/`: files that nobody has written to for so long."""
        for name in self.list("_tmp"):
            path = self.root / "_tmp" / name
            with contextlib.suppress(OSError):
                if path.lstat().st_mtime < time.time() - seconds:
                    path.unlink()

    def _link(self, path: Path, final: Path) -> bool:
        """Whether the file got the name. False if another file has it."""
        try:
            os.link(path, final)
        except OSError as error:
            if _is_same_file(path, final):  # a network file system lost its answer, not the link
                return True
            if isinstance(error, FileExistsError):
                return False
            if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK):
                raise
            hint = "caches can be made on ext4, xfs, btrfs, zfs, tmpfs, APFS and NFS"
            raise FeatureCacheError(f"{self.root} is on a file system without hard links", hint=hint) from error
        return True

    def _make_directory(self, path: Path) -> None:
        """Make a directory of the cache; its name, and those of all above it, are on the disk when this returns.

        One that stands there is synced as well, once: the run that made it may have been killed before it did so.
        """
        if path in self._durable and path.is_dir():
            return
        if path == self.root:
            _make_root(path)
        else:
            self._make_directory(path.parent)
            path.mkdir(exist_ok=True)
            _sync_directory(path.parent)
        self._durable.add(path)

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


def _make_root(path: Path) -> None:
    """Like mkdir -p, but every new name is on the disk when it returns."""
    stands = path.is_dir()
    if not stands:
        _make_root(path.parent)
        path.mkdir(exist_ok=True)
    # a directory above the cache may be one that we must not list, and so not sync; then it was there before us
    with contextlib.suppress(PermissionError) if stands else contextlib.nullcontext():
        _sync_directory(path.parent)


def _is_same_file(path: Path, other: Path) -> bool:
    try:
        ours, theirs = path.lstat(), other.lstat()
    except OSError:
        return False
    return (ours.st_dev, ours.st_ino) == (theirs.st_dev, theirs.st_ino)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
