"""Who is at work on what: claims of the living hold, those of the dead do not."""

import json
import os
import socket
import subprocess
import time

import pytest

from featurecache.store import claims as module
from featurecache.store.claims import Claims
from featurecache.store.objects import LocalObjects
from tests.store.small_parts import teacher_part


@pytest.fixture
def part():
    return teacher_part(3000)  # three shards of 1,024 rows


@pytest.fixture
def place(tmp_path, part):
    """Where the claim of a shard is, its folder made."""
    folder = tmp_path / "_claims" / part.split / part.name
    folder.mkdir(parents=True)
    return lambda shard: folder / f"{shard.view:05d}-{shard.index:07d}.json"


def write(path, *, age=0.0, text=None, **changed):
    """The claim of this very process, with some facts changed, last renewed `age` seconds ago."""
    facts = {"host": module._host(), "pid": os.getpid(), "started": module._started(os.getpid()), **changed}
    path.write_text(json.dumps(facts) if text is None else text)
    os.utime(path, (time.time() - age, time.time() - age))


def test_a_shard_is_taken_once(tmp_path, part):
    first, second = Claims(LocalObjects(tmp_path), part), Claims(LocalObjects(tmp_path), part)
    one, two, three = part.shards()
    assert first.take(one) and first.take(two)
    assert not second.take(one) and second.take(three) and not first.take(three)
    first.release(one)
    assert second.take(one)


def test_claims_end_with_the_run(tmp_path, part):
    with Claims(LocalObjects(tmp_path), part) as mine:
        assert all(mine.take(shard) for shard in part.shards())
    with Claims(LocalObjects(tmp_path), part) as other:
        assert all(other.take(shard) for shard in part.shards())
    assert not [path for path in (tmp_path / "_claims").rglob("*") if path.is_file()]


def test_parts_do_not_share_claims(tmp_path, part):
    shard = part.shards()[0]
    assert Claims(LocalObjects(tmp_path), part).take(shard)
    assert Claims(LocalObjects(tmp_path), teacher_part(3000, split="test")).take(shard)
    assert Claims(LocalObjects(tmp_path), teacher_part(3000, name="bert")).take(shard)


def dead_process():
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


@pytest.mark.parametrize(
    ("claim", "holds"),
    [
        ({}, True),
        ({"age": 599}, True),
        ({"age": 601}, False),  # alive, but it has done nothing for ten minutes
        ({"pid": dead_process}, False),
        ({"started": "12345"}, False),  # the number was given to another process since
        ({"host": "elsewhere", "pid": dead_process}, True),
        ({"host": "elsewhere", "age": 601}, False),
        ({"host": socket.gethostname(), "pid": dead_process}, True),  # a container of the same name, elsewhere
        ({"text": ""}, True),  # somebody is just writing it
        ({"text": "", "age": 31}, False),
        ({"text": "[" * 100_000, "age": 31}, False),
        ({"text": '{"host": 1}', "age": 31}, True),
        ({"pid": -1}, False),
        ({"pid": 2**70}, False),
    ],
)
def test_which_claims_hold(tmp_path, part, place, claim, holds):
    shard = part.shards()[0]
    write(place(shard), **{name: value() if callable(value) else value for name, value in claim.items()})
    assert Claims(LocalObjects(tmp_path), part).take(shard) is not holds


def test_a_zombie_does_nothing_any_more(tmp_path, part, place):
    process = subprocess.Popen(["sleep", "60"])
    shard = part.shards()[0]
    write(place(shard), pid=process.pid, started=module._started(process.pid))
    assert not Claims(LocalObjects(tmp_path), part).take(shard)
    process.kill()
    while module._started(process.pid):  # killed, not yet waited for
        time.sleep(0.01)
    assert Claims(LocalObjects(tmp_path), part).take(shard)
    process.wait()


def test_renewing_is_cheap_and_keeps_a_claim_alive(tmp_path, part, place, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    mine, shard = Claims(LocalObjects(tmp_path), part), part.shards()[0]
    assert mine.take(shard)
    os.utime(place(shard), (1, 1))
    now[0] += 29
    mine.renew()
    assert place(shard).stat().st_mtime == 1
    now[0] += 2
    mine.renew()
    assert place(shard).stat().st_mtime > time.time() - 60
    place(shard).unlink()  # taken over, because this run was asleep for too long
    now[0] += 31
    mine.renew()
    mine.release(shard)
