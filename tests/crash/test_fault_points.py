"""Killed, or told that the disk is full, at each single operation on the disk; then run again."""

import errno
import os
import random
import shutil

import pytest

from featurecache.errors import DiskFullError, FeatureCacheError
from tests.crash.checks import content_of, faults_in, files_of, records_in
from tests.crash.children import kill_oneself, start, wait
from tests.crash.operations import around, recorded
from tests.crash.small_run import write_all


def at_number(number, act):
    """Acts just before an operation is done, counted from 0."""
    count = iter(range(10**9))

    def call(operation, do):
        if next(count) == number:
            act(operation)
        return do()

    return call


@pytest.fixture
def undisturbed(folder):
    """The operations of a run from the beginning to the seal, and what it leaves."""
    root = folder / "undisturbed"
    with recorded(root) as operations:
        write_all(root)
    return operations, content_of(files_of(root))


def die_at(root, number):
    """A run that is killed there; what it leaves is whole."""

    def work():
        with around(root, at_number(number, lambda operation: kill_oneself())):
            write_all(root)

    code = wait(start(work))
    found = files_of(root)
    assert faults_in(found) == []
    return code, found


def what_stands(root):
    """Which file each name is: replaced ones have another number or time."""
    paths = [path for path in root.rglob("*") if path.is_file() and path.parent.name != "_tmp"]
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in paths}


def test_a_run_makes_every_kind_of_operation(undisturbed):
    operations, content = undisturbed
    assert {o.kind for o in operations} == {"create", "write", "fsync", "chmod", "mkdir", "link", "unlink", "sync"}
    assert len(records_in(content)) == 2
    linked = [o.target.name for o in operations if o.kind == "link"]
    assert linked[0] == "cache.json" and linked[-1] == "0.json" and len(linked) == len(content)


def test_killed_at_each_operation(folder, undisturbed, kills):
    operations, whole = undisturbed
    for number, operation in enumerate(operations):
        if operation.kind in ("create", "write", "chmod") and kills < 100:
            continue  # nobody else can tell these from dying at the next fsync or link
        root = folder / "cut"
        code, left = die_at(root, number)
        assert code == -9, f"at {operation}"
        before = what_stands(root)
        write_all(root)
        after = what_stands(root)
        assert content_of(files_of(root)) == whole, f"killed at {operation}"
        assert before.items() <= after.items() and left.items() <= files_of(root).items()
        shutil.rmtree(root)


def test_killed_again_and_again(folder, undisturbed, kills):
    operations, whole = undisturbed
    chance = random.Random(0)
    for _ in range(kills):
        root, deaths = folder / "cut", 0
        while die_at(root, chance.randrange(len(operations)))[0]:
            deaths += 1
        assert content_of(files_of(root)) == whole, f"after {deaths} deaths"
        shutil.rmtree(root)


@pytest.mark.parametrize(
    ("number", "kind", "step"),
    [(errno.ENOSPC, DiskFullError, 1), (errno.EDQUOT, DiskFullError, 5), (errno.EIO, FeatureCacheError, 3)],
    ids=["ENOSPC", "EDQUOT", "EIO"],
)
def test_each_operation_fails_once(folder, undisturbed, number, kind, step):
    operations, whole = undisturbed

    def fail(operation):
        raise OSError(number, os.strerror(number))

    for at, operation in list(enumerate(operations))[::step]:
        root = folder / "cut"
        with around(root, at_number(at, fail)):
            if operation.kind == "unlink":  # the file has its name: a temporary one that stays harms nobody
                write_all(root)
            else:
                with pytest.raises(FeatureCacheError, match=f"cannot write: .*{os.strerror(number)}") as error:
                    write_all(root)
                assert type(error.value) is kind and "committed rows are kept" in error.value.hint
                assert not (root / "_tmp").exists() or list((root / "_tmp").iterdir()) == [], f"at {operation}"
        assert faults_in(files_of(root)) == []
        write_all(root)
        assert content_of(files_of(root)) == whole, f"failed at {operation}"
        shutil.rmtree(root)


def test_a_disk_that_stays_full(folder, undisturbed):
    operations, whole = undisturbed
    last = max(at for at, operation in enumerate(operations) if operation.kind == "link")
    for at in range(0, last + 1, 5):
        root, calls = folder / "cut", iter(range(10**9))

        def full(operation, do, calls=calls, at=at):
            if next(calls) >= at and operation.kind in ("create", "write", "mkdir", "link"):
                raise OSError(errno.ENOSPC, "full")
            return do()

        with around(root, full), pytest.raises(DiskFullError):
            write_all(root)
        assert not (root / "_tmp").exists() or list((root / "_tmp").iterdir()) == []
        assert faults_in(files_of(root)) == []
        write_all(root)
        assert content_of(files_of(root)) == whole
        shutil.rmtree(root, ignore_errors=True)
