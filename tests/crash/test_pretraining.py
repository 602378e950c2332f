"""kill -9 in the middle of `pretrain`, again and again, and --resume: in the end the same bits."""

import hashlib
import json
import random
import signal
import time

import pytest

from student import trainer
from tests.crash.children import has_ended, kill, start, wait
from tests.crash.small_extraction import featurecache

OPTIONS = [
    *("--data", "synthetic-text:60", "--student", "bert:1x16", "--vocabulary", "150", "--max-length", "16"),
    *("--steps", "60", "--batch-size", "8", "--validation", "0.2", "--workers", "0", "--device", "cpu"),
]


def hashes(run):
    """Of the student and its tokenizer, and the losses that were told."""
    files = sorted((run / "student").iterdir())
    losses = (run / "metrics.jsonl").read_text()
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}, losses


def pretrain(out, log):
    resume = ["--resume"] if (out / "recipe.json").exists() else []
    return start(lambda: featurecache("pretrain", "--out", out, *OPTIONS, *resume), log=log)


def test_killed_at_random_moments_it_ends_with_the_same_bits(folder, monkeypatch):
    monkeypatch.setattr(trainer, "_SAVE_SECONDS", 0.0)  # a checkpoint every ten steps
    whole, cut, log = folder / "whole", folder / "cut", folder / "log"
    with pytest.raises(SystemExit) as done:  # in this process, so that its children find all modules loaded
        featurecache("pretrain", "--out", whole, *OPTIONS)
    assert not done.value.code
    chance, killed = random.Random(0), 0
    # files that appear one after another: what a run begins with, checkpoints, and what is left of the student
    for sign in ("recipe.json", *["checkpoints/last/*"] * 3, "student.partial"):
        before, child = {*cut.glob(sign)}, pretrain(cut, log)
        while {*cut.glob(sign)} == before and not has_ended(child):
            time.sleep(0.001)
        time.sleep(chance.random() * 0.02)
        killed += kill(child) == -signal.SIGKILL
    assert wait(pretrain(cut, log)) == 0, log.read_text()
    assert killed >= 4 and hashes(cut) == hashes(whole)
    assert json.loads((cut / "summary.json").read_text())["steps"] == 60
