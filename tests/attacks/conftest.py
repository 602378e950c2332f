"""The good cache that every attack begins with."""

import pytest

from tests.attacks.hostile import write_good


@pytest.fixture(scope="session")
def good(tmp_path_factory):
    root = tmp_path_factory.mktemp("good") / "cache"
    write_good(root)
    return root
