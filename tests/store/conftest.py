"""An empty cache to write into."""

import pytest

from featurecache.store.writer import create_cache


@pytest.fixture
def objects(tmp_path):
    return create_cache(tmp_path / "cache", source={"data": "made up"})
