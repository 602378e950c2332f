"""An import that is killed, and two of them at once: it goes through the same loop as an extraction."""

import signal
import time

import numpy as np
import pytest

from featurecache.store import layout
from featurecache.teachers.recorded import RecordedTeacher
from pipelines import finish, import_probabilities
from tests.crash.checks import content_of, faults_in, files_of
from tests.crash.children import SECONDS, has_ended, kill, start, wait
from tests.records.answer_files import chances, write

ROWS, SHARD_ROWS = 200, 16


@pytest.fixture
def file(folder, monkeypatch):
    """What was said of 200 images in three classes, in shards of 16 rows, each of which takes a moment to look up."""
    monkeypatch.setattr(layout, "_MAX_SHARD_BYTES", SHARD_ROWS * 16)  # of the rows part and its keys
    real = RecordedTeacher.recall

    def slow(self, samples: np.ndarray):
        time.sleep(0.03)
        return real(self, samples)

    monkeypatch.setattr(RecordedTeacher, "recall", slow)
    monkeypatch.setattr("pipelines.imports._BATCH_SIZE", SHARD_ROWS)
    rows = chances(ROWS, 3)
    records = [{"key": f"synthetic/{at:06d}", "logits": row.tolist()} for at, row in enumerate(rows)]
    return write(folder / "x.jsonl", records)


def imported(file, out):
    options = {"data": f"synthetic:{ROWS}", "splits": ["train"], "img_size": 16, "workers": 0}
    return finish(import_probabilities(file=file, out=out, **options))


def committed(out):
    return len(list((out / "train/x/_commits").glob("*.json")))


def test_killed_twice_and_then_two_at_once(folder, file):
    imported(file, folder / "whole")
    out = folder / "cut"
    for _ in range(2):
        before, child = committed(out), start(lambda: imported(file, out), log=folder / "log")
        stop = time.monotonic() + SECONDS
        while committed(out) < before + 3:
            assert not has_ended(child) and time.monotonic() < stop, (folder / "log").read_text()
            time.sleep(0.005)
        assert kill(child) == -signal.SIGKILL
        assert faults_in(files_of(out)) == []
    assert committed(out) < committed(folder / "whole")
    children = [start(lambda: imported(file, out), log=folder / "log") for _ in range(2)]
    assert [wait(child) for child in children] == [0, 0], (folder / "log").read_text()
    assert content_of(files_of(out)) == content_of(files_of(folder / "whole"))
