"""Where the tests of crashes write, and how many they make."""

import os
import shutil
import tempfile
from pathlib import Path

import jaxtyping
import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    torch.set_num_threads(1)  # the threads of a pool do not live on in a forked child


@pytest.fixture(autouse=True)
def _types_are_checked_elsewhere(monkeypatch):
    """These tests run the same few functions thousands of times, and most of the time would be spent on their types."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture(scope="session")
def kills() -> int:
    """How often the kill loops kill: FEATURECACHE_KILLS, or 20."""
    return int(os.environ.get("FEATURECACHE_KILLS", "20"))


@pytest.fixture
def folder(tmp_path):
    """A directory in memory where there is one: these tests sync thousands of files, and what counts is the order."""
    shared = Path("/dev/shm")
    if not os.access(shared, os.W_OK):
        yield tmp_path
        return
    path = Path(tempfile.mkdtemp(prefix="featurecache-", dir=shared))
    yield path
    shutil.rmtree(path, ignore_errors=True)
