"""A probe adds a head to a cache and changes nothing that was there."""

import hashlib
import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from featurecache.errors import UsageError
from featurecache.store.reader import open_cache
from pipelines import extract_cache, finish, fit_probe
from student.selection import labelled_rows


def bytes_of(folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture
def cache(text_cache, tmp_path):
    return shutil.copytree(text_cache, tmp_path / "cache")


def test_a_probe_is_added_and_every_earlier_file_stays(cache):
    before, digest = bytes_of(cache), open_cache(cache).seal.digest
    result = finish(fit_probe(cache=cache))
    after = bytes_of(cache)
    assert {name: after[name] for name in before} == before
    added = set(after) - set(before)
    assert all(name.startswith(("train/probe/", "seals/")) for name in added)
    assert len([name for name in added if name.startswith("seals/")]) == 1
    assert result["part"] == "train/probe" and result["classes"] == 4 and result["labels"] == 160
    assert result["digest"] == open_cache(cache).seal.digest != digest
    assert 0.25 < result["validation_accuracy"] <= 1


@pytest.mark.parametrize("split", ["train", "test"])
def test_every_split_has_logits_that_are_the_head_on_the_embedding(cache, split):
    finish(fit_probe(cache=cache))
    reader = open_cache(cache).split(split)
    head = load_file(cache / "train/probe/assets/head.safetensors")
    rows = np.arange(len(reader))[::-1].copy()
    found = reader.read(rows, outputs=["embedding", "logits"])
    torch.testing.assert_close(found["logits"], found["embedding"] @ head["weight"].T + head["bias"])
    assert reader.outputs["logits"].classes == reader.class_names == tuple(f"class-{label}" for label in range(4))
    assert reader.outputs["random-text/logits"].classes == ()  # the teacher's own stay under their full name
    accuracy = (found["logits"].argmax(1).numpy() == reader.labels[rows]).mean()
    assert accuracy > 0.6


def test_only_so_many_labels_are_used_and_which_is_kept(cache):
    reader = open_cache(cache).split("train")
    result = finish(fit_probe(cache=cache, labels=30))
    assert result["labels"] == 30
    part = next(part for part in open_cache(cache).parts("train") if part.kind == "probe")
    expected = labelled_rows(reader.keys, reader.labels, 30)
    labelled = np.frombuffer((cache / "train/probe/labelled/c/0").read_bytes()[:160], np.uint8)
    assert (labelled == expected).all()
    assert part.provenance["labels"] == 30


def test_labels_that_were_not_chosen_have_no_influence(tmp_path):
    """The same probe from data in which every other label is wrong."""
    from featurecache.sources import open_data

    source = open_data("synthetic-text:80")["train"]
    chosen = labelled_rows(list(source.keys), source.labels, 40)
    heads = []
    for name in ("right", "wrong"):
        labels = source.labels if name == "right" else np.where(chosen, source.labels, 3 - source.labels)
        lines = [
            json.dumps({"id": sample.key, "text": sample.encoded.decode(), "label": f"class-{label}"})
            for sample, label in zip(source.iter(0, 80), labels, strict=True)
        ]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
        out = tmp_path / name
        finish(extract_cache(teacher="random", data=str(tmp_path / f"{name}.jsonl"), out=out, workers=0, device="cpu"))
        finish(fit_probe(cache=out, labels=40))
        heads.append(load_file(out / "train/probe/assets/head.safetensors"))
    assert torch.equal(heads[0]["weight"], heads[1]["weight"]) and torch.equal(heads[0]["bias"], heads[1]["bias"])


def test_a_second_probe_stands_beside_the_first_and_is_the_one_that_is_read(cache):
    finish(fit_probe(cache=cache, labels=30))
    before = bytes_of(cache)
    result = finish(fit_probe(cache=cache, labels=60, seed=1))
    after = bytes_of(cache)
    assert result["part"] == "train/probe-2" and {name: after[name] for name in before} == before
    reader = open_cache(cache).split("test")
    found = reader.read(np.arange(5), outputs=["embedding", "logits", "probe/logits"])
    for output, part in (("logits", "probe-2"), ("probe/logits", "probe")):
        head = load_file(cache / f"train/{part}/assets/head.safetensors")
        torch.testing.assert_close(found[output], found["embedding"] @ head["weight"].T + head["bias"])


def test_the_same_probe_again_adds_nothing(cache):
    first = finish(fit_probe(cache=cache, labels=30, seed=5))
    assert finish(fit_probe(cache=cache, labels=30, seed=5)) == first


def test_an_older_probe_that_is_asked_for_again_is_the_one_that_is_read(cache):
    for labels, seen in [(20, 20), (None, 160), (20, 20), (20, 20)]:
        finish(fit_probe(cache=cache, labels=labels))
        assert open_cache(cache).split("train").labelled("logits").sum() == seen
    assert len([part for part in open_cache(cache).parts("train") if part.kind == "probe"]) == 3


def test_what_a_probe_cannot_be_fitted_on_is_refused(cache, tmp_path):
    with pytest.raises(UsageError, match="cannot choose 161 labels"):
        finish(fit_probe(cache=cache, labels=161))
    with pytest.raises(UsageError, match="labels to fit on and to validate on"):
        finish(fit_probe(cache=cache, labels=1))
    with pytest.raises(UsageError, match="'hidden'"):
        finish(fit_probe(cache=cache, output="hidden"))
    (tmp_path / "plain.txt").write_text("one text\nand another\n")
    options = {"workers": 0, "device": "cpu"}
    finish(extract_cache(teacher="random", data=str(tmp_path / "plain.txt"), out=tmp_path / "plain", **options))
    with pytest.raises(UsageError, match="has no labels to fit a probe on"):
        finish(fit_probe(cache=tmp_path / "plain"))
    given = {"model_kwargs": {"classes": 4}, "encode": {"logits": "topk:2"}, **options}
    finish(extract_cache(teacher="random", data="synthetic-text:40", out=tmp_path / "sparse", **given))
    with pytest.raises(UsageError, match="a probe needs dense features; logits is kept as sparse logits"):
        finish(fit_probe(cache=tmp_path / "sparse", output="logits"))
    assert not (cache / "train/probe").exists() and not (tmp_path / "plain/train/probe").exists()
