"""A power cut after every operation that the real code does, with disks that keep as little as they may."""

import shutil

import pytest

from tests.crash.checks import content_of, faults_in, files_of, records_in
from tests.crash.operations import recorded
from tests.crash.power import ADVERSARIES, KILLED, Disk, by_chance
from tests.crash.small_run import PART, write_all


@pytest.fixture
def adversaries(kills):
    return (*ADVERSARIES, *map(by_chance, range(kills // 5)))


@pytest.fixture
def trace(folder):
    """The operations of a run up to the seal; the root stands, as most parents of caches do."""
    root = folder / "cache"
    root.mkdir()
    with recorded(root) as operations:
        write_all(root)
    return root, operations


def readable(tree):
    """The files that readers look at."""
    return {place: data for place, data in tree.items() if not place.startswith("_tmp/") and not place.endswith("/")}


def cut_everywhere(root, operations, adversaries, *, disk=None, promises=()):
    """Faults found when the power goes after each operation, and every different tree that was left.

    `promises` are pairs: after so many operations, an object of that name is there whatever happens.
    """
    disk, faults, trees = disk or Disk(root), [], {}  # the model of the disk goes on from where it is
    for count, operation in enumerate(operations, 1):
        disk.apply(operation)
        for adversary in adversaries:
            left = disk.survivors(adversary)
            tree = readable(left)
            found = faults_in(tree)
            found += [f"{name} is lost" for after, name in promises if count >= after and name not in tree]
            faults += [f"{fault}: {adversary.name}, after {count}: {operation.kind}" for fault in found]
            trees[frozenset(tree.items())] = left
    return faults, list(trees.values())


def promises_of(root, operations):
    """(count, name) of each object: after so many operations it is safe, which the sync behind its link makes it."""
    links = [(at, operation.target) for at, operation in enumerate(operations) if operation.kind == "link"]
    syncs = [at for at, operation in enumerate(operations) if operation.kind == "sync"]
    return [(next(at for at in syncs if at > link) + 1, str(name.relative_to(root))) for link, name in links]


def put_down(tree, root):
    """Make the files that a power cut has left."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    for place, data in tree.items():
        if place.endswith("/"):
            (root / place).mkdir()
        else:
            (root / place).write_bytes(data)


def test_the_model_ends_with_what_is_on_the_disk(trace):
    root, operations = trace
    disk = Disk(root)
    for operation in operations:
        disk.apply(operation)
    for adversary in ADVERSARIES:  # at the end everything is synced, so that nobody can take anything away
        assert readable(disk.survivors(adversary)) == files_of(root)


def test_nothing_is_wrong_after_any_power_cut(trace, adversaries):
    root, operations = trace
    promises = promises_of(root, operations)
    assert len(promises) == len(files_of(root))
    faults, trees = cut_everywhere(root, operations, adversaries, promises=promises)
    assert faults == []
    assert {len(records_in(tree)) for tree in map(readable, trees)} == {0, 1, 2}


def test_the_same_command_completes_what_a_power_cut_left(trace, adversaries):
    root, operations = trace
    whole = content_of(files_of(root))
    _, trees = cut_everywhere(root, operations, adversaries)
    assert len(trees) > 10
    for tree in trees:
        put_down(tree, root)
        write_all(root)
        assert content_of(files_of(root)) == whole
        assert readable(tree).items() <= files_of(root).items()


def test_killed_first_and_then_the_power_goes(folder, adversaries):
    """What a killed run named but did not sync is taken over by the next, which must sync it before it builds on it."""
    root = folder / "cache"
    root.mkdir()
    with recorded(root) as operations:
        write_all(root)
    for at, operation in enumerate(operations):
        if operation.kind not in ("link", "mkdir"):
            continue
        disk = Disk(root)
        for earlier in operations[: at + 1]:
            disk.apply(earlier)
        put_down(disk.survivors(KILLED), root)
        with recorded(root) as after:
            write_all(root)
        faults, _ = cut_everywhere(root, after, adversaries, disk=disk)
        assert faults == [], f"killed after {operation}"
        for adversary in adversaries:
            assert readable(disk.survivors(adversary)) == files_of(root), f"killed after {operation}"


@pytest.mark.parametrize("dropped", ["fsync", "sync"])
def test_without_syncing_the_model_finds_faults(trace, dropped):
    root, operations = trace
    promises = promises_of(root, operations)
    careless = [operation for operation in operations if operation.kind != dropped]
    faults, _ = cut_everywhere(root, careless, ADVERSARIES, promises=[(len(careless), name) for _, name in promises])
    kinds = {"fsync": ("is torn", "and that is other"), "sync": ("and that is gone", "is lost")}[dropped]
    for kind in kinds:
        assert any(kind in fault for fault in faults)
    assert any(PART.prefix in fault for fault in faults)
