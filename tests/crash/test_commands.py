"""The whole command: killed with its worker processes, run twice at once, and on a disk that is full."""

import contextlib
import json
import os
import shlex
import signal
import subprocess
import time

import pytest

from featurecache.store.objects import LocalObjects
from featurecache.store.verify import Finding, verify
from tests.crash.checks import content_of, faults_in, files_of, records_in
from tests.crash.children import SECONDS, has_ended, kill, start, wait
from tests.crash.small_extraction import COMMAND, featurecache, log_begun_shards, make_small_and_slow


@pytest.fixture
def slow(monkeypatch):
    """Shards of 16 rows; for each of them the teacher takes a moment."""
    make_small_and_slow(monkeypatch, seconds=0.03)


def until(holds):
    stop = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < stop, "waited in vain"
        time.sleep(0.01)


def command(out, *options, log=None):
    """Start an extraction of 400 texts."""
    return start(lambda: featurecache(*COMMAND, "--out", out, "--json", *options), log=log)


def committed(out, part="random-text"):
    return len(list((out / "train" / part / "_commits").glob("*.json")))


def is_clean(out):
    assert not [finding for finding in verify(LocalObjects(out)) if isinstance(finding, Finding)]
    return faults_in(files_of(out)) == []


def members(group):
    """Processes of a group that have not ended."""
    found = []
    for name in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{name}/stat", encoding="utf-8") as file:
            state, _, its_group = file.read().rpartition(") ")[2].split()[:3]
            found += [int(name)] if int(its_group) == group and state not in "ZX" else []
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "cache"
    with pytest.MonkeyPatch.context() as patch:
        make_small_and_slow(patch, seconds=0)
        with pytest.raises(SystemExit) as ended:  # in this process, so that its children find all modules loaded
            featurecache(*COMMAND, "--out", out, "--workers", "0")
    assert not ended.value.code
    return content_of(files_of(out))


def test_killed_three_times_with_a_worker_process(folder, slow, undisturbed):
    out, groups = folder / "cache", []
    for _ in range(3):
        before = committed(out)
        child = command(out, "--workers", "1")
        groups.append(child)
        until(lambda before=before: committed(out) > before + 3)
        assert len(members(child)) >= 2  # the command and its worker
        assert not has_ended(child)
        assert kill(child) == -signal.SIGKILL
        assert faults_in(files_of(out)) == []
    before = {name: (out / name).stat().st_mtime_ns for name in files_of(out)}
    assert wait(command(out, "--workers", "1", log=folder / "log")) == 0, (folder / "log").read_text()
    assert content_of(files_of(out)) == undisturbed and is_clean(out)
    assert before == {name: (out / name).stat().st_mtime_ns for name in before}
    until(lambda: not any(map(members, groups)))  # workers see within seconds that nobody wants their batches


def test_two_commands_at_once(folder, slow, undisturbed, monkeypatch):
    out = folder / "cache"
    log_begun_shards(monkeypatch, folder / "begun")
    children = [command(out, "--workers", "0", log=folder / f"log{number}") for number in range(2)]
    assert [wait(child) for child in children] == [0, 0], (folder / "log0").read_text() + (folder / "log1").read_text()
    found = content_of(files_of(out))
    assert {name: data for name, data in found.items() if not name.startswith("seals/")}.items() <= undisturbed.items()
    assert found.keys() >= undisturbed.keys() and is_clean(out)


def test_another_teacher_is_refused_beside_the_first(folder, slow, undisturbed):
    out, log = folder / "cache", folder / "log"
    first = command(out, "--workers", "0")
    until(lambda: committed(out) > 3)
    assert wait(command(out, "--workers", "0", "--model-kwargs", "seed=1", log=log)) == 4
    assert "weights_sha256" in log.read_text() and "Traceback" not in log.read_text()
    assert wait(first) == 0
    assert content_of(files_of(out)) == undisturbed and is_clean(out)
    before = {path: path.stat().st_mtime_ns for path in [out, *out.rglob("*")]}
    assert wait(command(out, "--workers", "0", "--model-kwargs", "seed=1")) == 4
    assert {path: path.stat().st_mtime_ns for path in [out, *out.rglob("*")]} == before


@pytest.fixture
def small_disk(folder):
    """A disk of 3 MB; skips where this user cannot have one."""
    disk = folder / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root can mount a small disk; test_fault_points.py fails every write without one")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def fill(disk):
    """Write until nothing goes on the disk any more."""
    with contextlib.suppress(OSError), (disk / "ballast").open("ab", buffering=0) as file:
        while file.write(bytes(4096)):
            pass


@pytest.mark.parametrize("when", ["before", "while rows are listed", "while the teacher runs"])
def test_a_disk_that_is_full(small_disk, folder, slow, undisturbed, when):
    out, log = small_disk / "cache", folder / "log"
    arguments = [*COMMAND, "--out", str(out), "--workers", "0"]
    if when == "before":
        fill(small_disk)
    child = start(lambda: featurecache(*arguments), log=log)
    if when != "before":
        until(lambda: committed(out, "rows" if when == "while rows are listed" else "random-text") > 1)
        fill(small_disk)
    assert wait(child) == 6, log.read_text()
    told = log.read_text()
    assert "Traceback" not in told and ("0 are free there" if when == "before" else "No space left on device") in told
    left = files_of(out)
    assert faults_in(left) == [] and bool(records_in(left)) == (when != "before")
    assert not (out / "_tmp").exists() or list((out / "_tmp").iterdir()) == []
    kept = {name: (out / name).stat().st_mtime_ns for name in left}

    (small_disk / "ballast").unlink()
    resume = next(line for line in told.splitlines() if line.strip().startswith("featurecache extract"))
    assert shlex.split(resume) == ["featurecache", *arguments]
    assert wait(start(lambda: featurecache(*shlex.split(resume)[1:], "--json"), log=folder / "again")) == 0
    assert json.loads((folder / "again").read_text().splitlines()[-1])["splits"]["train"]["rows"] == 400
    assert content_of(files_of(out)) == undisturbed and is_clean(out)
    assert kept == {name: (out / name).stat().st_mtime_ns for name in kept}
