"""^C and SIGTERM in a real terminal's way: to the whole process group, in the middle of the work; and then the command
that was printed."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time

import pytest

# where tests run in the background, an ignored SIGINT is inherited
START = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from pipelines.cli import main
main()
"""
SECONDS = 60

SLOW = """
import os, time, torch

class Slow(torch.nn.Module):
    def forward(self, images):
        time.sleep(float(os.environ["SECONDS_A_BATCH"]))
        return images.mean((2, 3))

network = Slow()
"""


def start(arguments, **environment):
    command = [sys.executable, "-c", START, *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(
        command, env={**os.environ, "OMP_NUM_THREADS": "1", **environment}, process_group=0, **pipes
    )


def wait_until(holds, process):
    until = time.monotonic() + SECONDS
    while not holds() and time.monotonic() < until:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.005)


def interrupt(arguments, when, *, signals=signal.SIGINT, code=130, **environment):
    """Starts a command and sends it a signal as soon as `when()` holds; returns the lines it left on stderr."""
    process = start(arguments, **environment)
    wait_until(when, process)
    os.killpg(process.pid, signals)
    out, err = process.communicate(timeout=SECONDS)
    assert process.returncode == code, err
    assert out == "" and "Traceback" not in err
    return err.splitlines()


def resume_arguments(lines):
    """What stands below "interrupted: ...", without the program's name."""
    at = next(index for index, line in enumerate(lines) if line.startswith("interrupted: "))
    assert len(lines) == at + 2
    program, *arguments = shlex.split(lines[at + 1])
    assert program == "featurecache"
    return arguments


def test_extract(run, tmp_path):
    out = tmp_path / "a cache"  # with a space, which the printed command must quote
    committed = out / "train" / "random-image" / "_commits"
    command = ["extract", "--teacher", "random", "--data", "synthetic:6000", "--split", "train", "--out", out]
    lines = interrupt([*command, "--workers", "1"], lambda: committed.is_dir() and any(committed.rglob("*.json")))
    assert run("status", out).code == 3
    kept = {path: path.stat().st_mtime_ns for path in committed.rglob("*.json")}
    assert 0 < len(kept) < 6

    again = run(*resume_arguments(lines), "--json")
    assert again.code == 0 and json.loads(again.out)["splits"]["train"]["rows"] == 6000
    assert {path: path.stat().st_mtime_ns for path in kept} == kept  # nothing was done twice
    assert run("status", out).code == 0


@pytest.fixture
def slow(tmp_path, monkeypatch):
    """An extraction by a teacher that takes its time, four shards of 1,024 rows; and where its commit records are."""
    (tmp_path / "slow_teacher.py").write_text(SLOW)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("SECONDS_A_BATCH", "0")
    command = ["extract", "--teacher", "torch:slow_teacher:network", "--data", "synthetic:4096", "--split", "train"]
    command += ["--img-size", "16", "--out", tmp_path / "cache"]
    return command, tmp_path / "cache" / "train" / "network" / "_commits"


def left_behind(commits):
    """Files that a run which ended in good order has removed."""
    cache = commits.parents[2]
    return [path for folder in ("_tmp", "_claims") for path in (cache / folder).rglob("*") if path.is_file()]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("workers", [0, 1])
def test_the_first_signal_waits_for_the_end_of_the_shard(run, slow, number, code, workers):
    command, commits = slow
    if number == signal.SIGTERM and workers:
        pytest.skip("sent to a whole group, it ends the loader's processes too")
    counted = []

    def middle_of_the_second_shard():
        if not any(commits.rglob("*.json")):
            return False
        time.sleep(0.4)  # a shard takes 1.6 seconds
        counted.append(len(list(commits.rglob("*.json"))))
        return True

    options = ["--workers", workers, "--batch-size", 64]
    lines = interrupt(
        [*command, *options], middle_of_the_second_shard, signals=number, code=code, SECONDS_A_BATCH="0.1"
    )
    committed = len(list(commits.rglob("*.json")))
    assert committed == counted[0] + 1 < 4 and not left_behind(commits)
    assert "stopping as soon as nothing is lost by it; once more stops at once" in lines
    assert any(f"train/network {committed * 1024:,} of 4,096 rows" in line for line in lines)
    assert run(*resume_arguments(lines)).code == 0 and run("verify", commits.parents[2]).code == 0


def test_a_shard_that_would_take_too_long_is_dropped(run, slow):
    command, commits = slow

    # 128 batches of a tenth of a second: more than the eight seconds that are waited
    def middle_of_the_first_shard():
        began = (commits.parent / "part.json").exists() and any((commits.parents[2] / "_tmp").iterdir())
        time.sleep(0.5 if began else 0)
        return began

    options = ["--workers", "0", "--batch-size", 8]
    lines = interrupt([*command, *options], middle_of_the_first_shard, SECONDS_A_BATCH="0.1")
    assert not list(commits.rglob("*.json")) and not left_behind(commits)
    assert any("train/network 0 of 4,096 rows" in line for line in lines), lines
    assert run(*resume_arguments(lines)).code == 0 and run("verify", commits.parents[2]).code == 0


def test_the_second_signal_ends_it_at_once(run, slow):
    command, commits = slow
    process = start([*command, "--workers", "0", "--batch-size", 64], SECONDS_A_BATCH="0.3")  # 4.8 seconds a shard
    wait_until(lambda: any(commits.rglob("*.json")), process)
    time.sleep(0.5)
    before = len(list(commits.rglob("*.json")))
    os.killpg(process.pid, signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None  # it is waiting for the end of the shard
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=2)
    assert process.returncode == -signal.SIGINT and "Traceback" not in err
    assert len(list(commits.rglob("*.json"))) == before
    assert run("verify", commits.parents[2]).code == 0
    assert run(*command, "--workers", "0").code == 0 and run("verify", commits.parents[2]).code == 0
    assert len(list(commits.rglob("*.json"))) == 4


def test_train_student(run, cache, tmp_path):
    out = tmp_path / "run"
    command = f"train-student --cache {cache} --student bert:1x16 --objective align-uniform --steps 220 --out {out}"
    options = "--batch-size 8 --max-length 16 --workers 0 --device cpu"
    checkpoint = out / "checkpoints" / "last"
    lines = interrupt([*command.split(), *options.split()], checkpoint.exists)
    assert not (out / "summary.json").exists()

    arguments = resume_arguments(lines)
    assert arguments[-1] == "--resume"
    again = run(*arguments, "--json")
    assert again.code == 0 and json.loads(again.out)["steps"] == 220
    steps = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    losses = [line["step"] for line in steps if "loss" in line]
    assert losses == sorted(set(losses)) and losses[-1] == 220
