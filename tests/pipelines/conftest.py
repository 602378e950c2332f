"""One thread for every pipeline test, an empty folder to run in, and two small caches that are read only."""

import pytest
import torch

from pipelines import extract_cache, finish


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path_factory, monkeypatch):
    monkeypatch.chdir(tmp_path_factory.mktemp("here"))


@pytest.fixture(scope="session")
def text_cache(tmp_path_factory):
    """Embeddings and unnamed logits of 160 texts of four classes to train on, and 40 to test on."""
    path = tmp_path_factory.mktemp("text") / "cache"
    options = {"model_kwargs": {"dim": 16, "classes": 4}, "encode": {"embedding": "float32"}}
    finish(extract_cache(teacher="random", data="synthetic-text:160", out=path, workers=0, device="cpu", **options))
    return path


@pytest.fixture(scope="session")
def image_cache(tmp_path_factory):
    """Embeddings of 60 images of 16 pixels; no logits."""
    path = tmp_path_factory.mktemp("image") / "cache"
    finish(extract_cache(teacher="random", data="synthetic:60", out=path, workers=0, device="cpu"))
    return path
