"""`torchrun featurecache train-student` in two processes, against the same command in one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipelines import extract_cache, finish

_BIN = Path(sys.executable).parent
OPTIONS = [
    "--batch-size",
    "16",
    "--steps",
    "20",
    "--validation",
    "0.2",
    "--workers",
    "0",
    "--device",
    "cpu",
    "--seed",
    "3",
]


def train(cwd, *arguments, processes=1):
    """The command's outcome; with several processes started by torchrun."""
    program = [str(_BIN / "featurecache"), "train-student", *map(str, arguments)]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = program if processes == 1 else [*launcher, *program]
    clean = {"PATH": os.environ["PATH"], "HOME": str(cwd), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=cwd, env=clean, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Images of 16 pixels, and a random teacher's embeddings."""
    path = tmp_path_factory.mktemp("images") / "cache"
    options = {"teacher": "random", "data": "synthetic:80", "device": "cpu", "workers": 0}
    finish(extract_cache(out=path, **options))
    return path


def test_two_processes_train_a_network_with_batch_norms_as_one_does(cache, tmp_path):
    options = [
        "--cache",
        cache,
        "--student",
        "test_resnet",
        "--img-size",
        "32",
        "--objective",
        "align-uniform,cosine,ce",
        *OPTIONS,
    ]
    one = train(tmp_path, *options, "--out", "one", "--json")
    two = train(tmp_path, *options, "--out", "two", "--json", processes=2)
    assert one.returncode == two.returncode == 0, one.stderr + two.stderr
    assert "2 processes have a copy of the student each" in two.stderr
    assert two.stderr.count("student test_resnet, objective") == 1
    assert json.loads(two.stdout)["rows"] == json.loads(one.stdout)["rows"]
    alone, together = ((tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("one", "two"))
    for ours, theirs in zip(map(json.loads, together), map(json.loads, alone), strict=True):
        assert ours.keys() == theirs.keys() and ours["step"] == theirs["step"]
        flat = {**ours, **ours.get("validation", {})}, {**theirs, **theirs.get("validation", {})}
        for name in flat[0].keys() - {"validation"}:
            assert flat[0][name] == pytest.approx(flat[1][name], rel=2e-3)
    ours, theirs = (load_file(tmp_path / name / "student/student.safetensors") for name in ("two", "one"))
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name].float(), value.float(), rtol=2e-2, atol=2e-3)


def test_batches_that_cannot_be_shared_are_refused_once_and_without_a_traceback(cache, tmp_path):
    options = ["--cache", cache, "--student", "test_resnet", "--objective", "cosine", "--batch-size", "7"]
    done = train(tmp_path, *options, "--out", "run", "--device", "cpu", "--workers", "0", processes=2)
    assert done.returncode and not (tmp_path / "run").exists()
    message = "error: 2 processes cannot share batches of 7 samples equally"
    told = [line for line in done.stderr.splitlines() if message in line]
    assert sorted(told) == [message, f"process 1: {message}"]
    assert "pipelines/" not in done.stderr  # torchrun itself tells of the processes that ended
