"""What a cache holds and how far it is, from what is on disk."""

import shutil

import pytest

from featurecache.errors import UsageError
from featurecache.store.reader import open_cache
from pipelines import describe_cache, describe_progress, extract_cache, finish, fit_probe


@pytest.fixture
def cache(text_cache, tmp_path):
    return shutil.copytree(text_cache, tmp_path / "cache")


def test_a_finished_cache(cache):
    finish(fit_probe(cache=cache, labels=50))
    facts = describe_cache(cache)
    assert facts["sealed"] and facts["digest"] == open_cache(cache).seal.digest
    assert facts["source"]["data"] == ["synthetic-text:160"]
    assert facts["bytes"] == sum(path.stat().st_size for path in cache.rglob("*") if path.is_file())
    train, test = facts["splits"]["train"], facts["splits"]["test"]
    assert list(train) == ["probe", "random-text", "rows"] and list(test) == ["random-text", "rows"]
    assert train["rows"]["rows"] == 160 and train["rows"]["modality"] == "text" and train["rows"]["classes"] == 4
    assert train["random-text"]["outputs"] == {"embedding": "[16] float32", "logits": "[4] float16"}
    assert train["random-text"]["teacher"] == "random-text" and len(train["random-text"]["weights_sha256"]) == 64
    assert train["probe"]["labels"] == 50 and train["probe"]["outputs"] == {"logits": "[4] head"}
    assert train["random-text"]["bytes"] == sum(
        path.stat().st_size for path in (cache / "train/random-text").glob("*/c/**/*") if path.is_file()
    )
    progress = describe_progress(cache)
    assert progress["complete"] and progress["sealed"]
    assert progress["parts"]["test/rows"] == {"rows": 40, "committed": 40, "shards": "1/1", "complete": True}


def test_invalid_rows_are_told_by_reason(tmp_path):
    (tmp_path / "texts.jsonl").write_text('{"text": "one", "label": "a"}\n{"text": " ", "label": "b"}\n')
    finish(
        extract_cache(teacher="random", data=str(tmp_path / "texts.jsonl"), out=tmp_path / "c", workers=0, device="cpu")
    )
    assert describe_cache(tmp_path / "c")["splits"]["train"]["random-text"]["invalid"] == {"empty text": 1}


@pytest.mark.parametrize("stage", ["list train", "list test", "extract train"])
def test_an_interrupted_extraction_is_not_complete(tmp_path, stage):
    run = extract_cache(teacher="random", data="synthetic-text:40", out=tmp_path / "c", workers=0, device="cpu")
    for event in run:
        if getattr(event, "stage", None) == stage:
            run.close()
    facts, progress = describe_cache(tmp_path / "c"), describe_progress(tmp_path / "c")
    assert facts["digest"] is None and not facts["sealed"]
    assert not progress["sealed"] and not progress["complete"]
    assert progress["parts"]["train/rows"]["complete"]


def test_no_cache(tmp_path):
    for describe in (describe_cache, describe_progress):
        with pytest.raises(UsageError, match="there is no cache at"):
            describe(tmp_path)
