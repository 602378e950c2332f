"""One process at a time in a folder: two that carry out the same stage would write the same files."""

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from featurecache.errors import UsageError

__all__ = ["alone_in"]


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold FOLDER/.lock, which the system lets go when the process ends, however it does. Raises UsageError if another
    process holds it; a file system that knows no locks keeps nobody out."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("ab") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            hint = "wait until it is done, or choose another --out"
            raise UsageError(f"another process is at work in {folder.parent}", hint=hint) from None
        except OSError:
            pass
        yield
