"""One thread, and an empty offline hub, for every teacher test."""

import pytest
import torch
from huggingface_hub import constants


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def hub_cache(tmp_path_factory, monkeypatch):
    """The folder that huggingface_hub takes for its cache; no test reaches the network."""
    cache = tmp_path_factory.mktemp("hub")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return cache
