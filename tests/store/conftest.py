"""Caches to write into, to read, and to damage."""

import pytest

from featurecache.store import layout
from featurecache.store.writer import create_cache
from tests.store.tiny_cache import write_tiny


@pytest.fixture
def objects(tmp_path):
    """An empty cache."""
    return create_cache(tmp_path / "cache", source={"data": "made up"})


@pytest.fixture
def small_shards(monkeypatch):
    """Shards of four rows, so that a cache has a few kilobytes instead of a hundred."""
    monkeypatch.setattr(layout, "rows_per_shard", lambda rows, arrays: 4)


@pytest.fixture
def tiny(tmp_path, small_shards):
    """The cache of tiny_cache.py."""
    return write_tiny(tmp_path / "cache")
