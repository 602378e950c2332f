"""What a cache holds and how far it is, from what is on disk."""

import re
import shutil
from dataclasses import replace

import pytest

from featurecache.errors import UsageError
from featurecache.store.reader import open_cache
from pipelines import describe_cache, describe_progress, extract_cache, finish, fit_probe
from pipelines.describe import output_text
from tests.store.small_parts import teacher_part


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
    assert list(train) == ["inputs", "probe", "random-text", "rows"]
    assert list(test) == ["inputs", "random-text", "rows"]
    assert train["rows"]["rows"] == 160 and train["rows"]["modality"] == "text" and train["rows"]["classes"] == 4
    embedding, logits = (train["random-text"]["outputs"][name] for name in ("embedding", "logits"))
    assert embedding == "[16] float32: nothing is lost, on 160 rows"
    costs = r"cosine 1\.000000 \(lowest 1\.000000\), largest error 0\.00\d+, mean KL \S+, same first class 100\.00%"
    assert re.fullmatch(rf"\[4\] float16: {costs}, on 160 rows", logits)
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


@pytest.mark.parametrize(
    ("cost", "text"),
    [
        ({"cosine": 0.99997365, "lowest_cosine": 0.9, "largest_error": 0.00312, "rows": 1024}, 1),
        ({"kl": {"1": 0.00123, "2": 2e-5}, "mass": {"1": 0.98765, "2": 0.5}, "rows": 256}, 2),
        ({"mass": {"1": 0.98}, "distance": {"1": 0.0512}, "entropy_error": 0.0, "rows": 256}, 3),
        ({}, None),
        ({"rows": 9}, None),
        ({"cosine": 1.0}, None),
        ([], None),
        ("cosine", None),
        ({"kl": {"\x1b[2J": 0.5, "1": 10**400}, "mass": 10**400, "largest_error": 10**400, "rows": 3}, None),
        ({"cosine": "1", "lowest_cosine": [], "largest_error": None, "kl": [1], "rows": 3}, None),
    ],
)
def test_what_an_encoding_costs_in_words(cost, text):
    expected = {
        1: ": cosine 0.999974 (lowest 0.900000), largest error 0.0031, on 1,024 rows",
        2: ": mean KL 0.00123 at T=1, 2e-05 at T=2, probability kept 0.988 at T=1, 0.5 at T=2, on 256 rows",
        3: ": probability kept 0.98 at T=1, mean distance 0.0512 at T=1, on 256 rows",
        None: "",
    }[text]
    part = teacher_part(10)
    shown = output_text(replace(part, provenance={"encoding_cost": {"embedding": cost}}), part.outputs[0])
    assert shown == f"[4] float16{expected}"


@pytest.mark.parametrize("costs", [None, [], "embedding", {"other": {}}])
def test_costs_that_are_not_there(costs):
    part = teacher_part(10)
    assert output_text(replace(part, provenance={"encoding_cost": costs}), part.outputs[0]) == "[4] float16"
    assert output_text(part, part.outputs[0]) == "[4] float16"
