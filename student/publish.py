"""A folder of files that appears whole or not at all, and stays until a newer one has taken its place.

PATH/1, PATH/2, ... are whole; the newest is the one that counts, and older ones are removed once it stands. What is
being written, and what is being removed, is in PATH.partial, which nobody reads.
"""

import os
import shutil
from pathlib import Path

__all__ = ["fresh_folder", "newest", "publish"]


def newest(path: Path) -> Path | None:
    """The newest whole folder at the path; None where there is none."""
    standing = _standing(path)
    return path / str(standing[-1]) if standing else None


def fresh_folder(path: Path) -> Path:
    """An empty folder to write in, beside the path; what an interrupted writer left there is removed."""
    shutil.rmtree(_partial(path), ignore_errors=True)
    folder = being_written(path)
    folder.mkdir(parents=True)
    return folder


def being_written(path: Path) -> Path:
    """The folder that `fresh_folder` makes."""
    return _partial(path) / "new"


def publish(path: Path) -> None:
    """Give the written folder, whose files are synced, its place; then remove the older ones."""
    standing, partial = _standing(path), _partial(path)
    whole = partial / str(standing[-1] + 1 if standing else 1)
    being_written(path).rename(whole)
    _sync(whole)
    _sync(partial)
    if path.exists():
        whole.rename(path / whole.name)
    else:
        partial.rename(path)  # never a path that holds nothing
        _sync(path.parent)
    _sync(path)
    for number in standing:  # moved before they are removed, so that none stands in part
        (path / str(number)).rename(partial / f"{number}.old")
    shutil.rmtree(partial, ignore_errors=True)


def _standing(path: Path) -> list[int]:
    try:
        return sorted(int(item.name) for item in path.iterdir() if item.name.isdecimal())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _partial(path: Path) -> Path:
    return path.with_name(f"{path.name}.partial")


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
