"""kill -9 in the middle of `train-student`, again and again, and --resume: in the end the same bits."""

import hashlib
import json
import random
import time

import pytest

from student import trainer
from tests.crash.children import kill, start, wait
from tests.crash.small_extraction import featurecache

OPTIONS = [
    *("--student", "bert:1x16", "--objective", "align-uniform,crd(negatives=20),infonce(negatives=9),ce"),
    *("--steps", "130", "--batch-size", "8", "--max-length", "16", "--ema", "0.9", "--accumulate", "2"),
    *("--validation", "0.2", "--workers", "0", "--device", "cpu"),
]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    out = tmp_path_factory.mktemp("cache") / "cache"
    with pytest.raises(SystemExit) as ended:  # in this process, so that its children find all modules loaded
        featurecache("extract", "--teacher", "random", "--data", "synthetic-text:80", "--out", out, "--workers", "0")
    assert not ended.value.code
    return out


def hashes(run):
    """Of the student, and of the losses that were told."""
    weights = hashlib.sha256((run / "student" / "student.safetensors").read_bytes()).hexdigest()
    return weights, (run / "metrics.jsonl").read_text()


def train(cache, out, *options, log=None):
    return start(lambda: featurecache("train-student", "--cache", cache, "--out", out, *OPTIONS, *options), log=log)


def test_killed_at_random_moments_it_ends_with_the_same_bits(folder, cache, monkeypatch, kills):
    monkeypatch.setattr(trainer, "_SAVE_SECONDS", 0.0)  # a checkpoint every ten steps
    assert wait(train(cache, folder / "whole", log=folder / "log")) == 0, (folder / "log").read_text()
    chance, killed, began = random.Random(0), 0, time.monotonic()
    while killed < max(kills // 4, 5):
        child = train(cache, folder / "cut", *(["--resume"] if (folder / "cut").exists() else []), log=folder / "log")
        checkpoints = folder / "cut" / "checkpoints" / "last"
        before = {path.name for path in checkpoints.glob("*")}
        while {path.name for path in checkpoints.glob("*")} == before and not (folder / "cut/summary.json").exists():
            assert time.monotonic() - began < 300, (folder / "log").read_text()
            time.sleep(0.002)
        if (folder / "cut/summary.json").exists():
            wait(child)
            break
        time.sleep(chance.random() * 0.2)
        kill(child)
        killed += 1
    if not (folder / "cut/summary.json").exists():
        assert wait(train(cache, folder / "cut", "--resume", log=folder / "log")) == 0, (folder / "log").read_text()
    assert killed >= 3 and hashes(folder / "cut") == hashes(folder / "whole")
    assert json.loads((folder / "cut/summary.json").read_text())["steps"] == 130
