"""Fixtures of the sources' tests: a web server, and downloads that stay in the test's own folder."""

import pytest

from featurecache.sources import fetch
from tests.sources.web import serve


@pytest.fixture(autouse=True)
def downloads(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("downloads")
    monkeypatch.setenv("FC_DATA_CACHE", str(folder))
    monkeypatch.delenv("FC_DATA_CACHE_GB", raising=False)
    monkeypatch.setattr(fetch, "_PAUSES", (0.0, 0.0, 0.0))
    return folder


@pytest.fixture
def web():
    with serve() as server:
        yield server
