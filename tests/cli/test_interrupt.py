"""^C in a real terminal's way: to the whole process group, in the middle of the work; and then the printed command."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time

# where tests run in the background, an ignored SIGINT is inherited
START = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from pipelines.cli import main
main()
"""
SECONDS = 60


def interrupt(arguments, when):
    """Starts a command and sends ^C as soon as `when()` holds; returns the lines it left on stderr."""
    command = [sys.executable, "-c", START, *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, process_group=0, **pipes)
    until = time.monotonic() + SECONDS
    while not when() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 130, err
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


def test_train_student(run, cache, tmp_path):
    out = tmp_path / "run"
    command = f"train-student --cache {cache} --student bert:1x16 --objective align-uniform --steps 220 --out {out}"
    options = "--batch-size 8 --max-length 16 --workers 0 --device cpu"
    checkpoint = out / "checkpoints" / "last.safetensors"
    lines = interrupt([*command.split(), *options.split()], checkpoint.exists)
    assert not (out / "summary.json").exists()

    arguments = resume_arguments(lines)
    assert arguments[-1] == "--resume"
    again = run(*arguments, "--json")
    assert again.code == 0 and json.loads(again.out)["steps"] == 220
    steps = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    losses = [line["step"] for line in steps if "loss" in line]
    assert losses == sorted(set(losses)) and losses[-1] == 220
