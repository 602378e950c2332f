"""Commands run in this process, just as `main` runs them, and one small cache and run for tests that only read."""

import sys
from typing import NamedTuple

import pytest
import torch

from pipelines.cli import main
from pipelines.events import finish
from pipelines.extract import extract_cache
from pipelines.train import train_student


class Outcome(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def run(capsys, monkeypatch):
    """Calls a command with these arguments; a traceback fails the test."""

    def call(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["featurecache", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return Outcome(ended.value.code or 0, printed.out, printed.err)

    return call


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """64 texts for training and 16 for testing, with the embeddings and logits of a random teacher."""
    path = tmp_path_factory.mktemp("cache") / "texts"
    options = {"model_kwargs": {"classes": 4}, "workers": 0, "device": "cpu"}
    finish(extract_cache(teacher="random", data="synthetic-text:64", out=path, **options))
    return path


@pytest.fixture(scope="session")
def trained(cache, tmp_path_factory):
    """The directory of a run of two steps."""
    path = tmp_path_factory.mktemp("runs") / "run"
    options = {"student": "bert:1x16", "objective": "align-uniform", "steps": 2, "workers": 0, "device": "cpu"}
    finish(train_student(cache=cache, out=path, **options))
    return path
