"""A training run on disk: what it leaves, how it goes on, and what it does not accept."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from featurecache.errors import IdentityError, UsageError
from featurecache.sources import open_data
from featurecache.store.reader import open_cache
from pipelines import finish, fit_probe, train_student
from pipelines.events import Advance, Message
from student.export import load_student

FAST = {"student": "bert:1x64", "max_length": 24, "batch_size": 16, "workers": 0, "device": "cpu", "validation": 0.2}


def lines_of(run):
    return [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def run(text_cache, tmp_path_factory):
    """A finished run of 120 steps: (its folder, its summary, its events)."""
    out = tmp_path_factory.mktemp("runs") / "run"
    events = []
    training = train_student(cache=text_cache, out=out, steps=120, objective="kl,ce", **FAST)
    while True:
        try:
            events.append(next(training))
        except StopIteration as stop:
            return out, stop.value, events


def test_the_directory_of_a_finished_run(run, text_cache):
    out, summary, _ = run
    files = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    checkpoint = {name for name in files if name.startswith("checkpoints/")}
    student = {"student/student.json", "student/student.safetensors", "student/tokenizer.json"}
    assert files == {"recipe.json", "metrics.jsonl", "summary.json"} | student | checkpoint
    assert len(checkpoint) == 2
    assert json.loads((out / "summary.json").read_text()) == summary
    recipe = json.loads((out / "recipe.json").read_text())
    digest = open_cache(text_cache).seal.digest
    assert recipe["digest"] == summary["digest"] == digest
    assert recipe["cache"] == str(text_cache) and recipe["objective"] == "kl,ce" and recipe["steps"] == 120
    assert recipe["student"]["layers"] == 1 and recipe["input"]["max_length"] == 24
    assert recipe["learning_rate"] == 5e-4 and recipe["labels"] is None
    assert summary["rows"]["training"] + summary["rows"]["validation"] == 160
    student, facts = load_student(out / "student")
    assert facts["digest"] == digest and facts["class_names"] == [f"class-{label}" for label in range(4)]
    assert summary["parameters"] == sum(value.numel() for value in student.parameters())


def test_metrics_are_told_every_ten_steps_and_at_each_validation(run):
    out, summary, events = run
    lines = lines_of(out)
    assert [line["step"] for line in lines if "validation" not in line] == list(range(10, 121, 10))
    assert [line["step"] for line in lines if "validation" in line] == [100, 120]
    assert set(lines[0]) == {"step", "epoch", "learning_rate", "loss", "kl", "ce"}
    assert summary["validation"] == lines[-1]["validation"] and summary["training"]["loss"] == lines[-2]["loss"]
    assert lines[-2]["loss"] < lines[0]["loss"]
    assert events[0] == Message("student bert:1x64, objective kl,ce")
    assert [event.done for event in events if isinstance(event, Advance)] == list(range(0, 121, 10))


def stop_at(training, step):
    for event in training:
        if isinstance(event, Advance) and event.done == step:
            training.close()


def test_an_interrupted_run_goes_on_to_the_same_end(text_cache, tmp_path):
    given = {**FAST, "cache": text_cache, "steps": 220, "objective": "kl,ce"}
    finish(train_student(out=tmp_path / "whole", **given))
    stop_at(train_student(out=tmp_path / "parts", **given), 150)
    assert not (tmp_path / "parts/summary.json").exists()
    with (tmp_path / "parts/metrics.jsonl").open("a") as file:
        file.write('{"step": 151, "epo')
    torch.manual_seed(77)
    events = list(train_student(out=tmp_path / "parts", resume=True, **given))
    assert next(event.done for event in events if isinstance(event, Advance)) == 100  # where the checkpoint is
    whole, parts = lines_of(tmp_path / "whole"), lines_of(tmp_path / "parts")
    places = [(line["step"], "validation" in line) for line in parts]
    assert len(set(places)) == len(places) and places == [(line["step"], "validation" in line) for line in whole]
    assert parts == whole
    assert (
        load_student(tmp_path / "parts/student")[1]["digest"] == load_student(tmp_path / "whole/student")[1]["digest"]
    )


def test_an_interrupted_run_ends_with_the_same_bits(text_cache, tmp_path):
    given = {**FAST, "cache": text_cache, "steps": 120, "objective": "kl,ce"}
    finish(train_student(out=tmp_path / "whole", **given))
    stop_at(train_student(out=tmp_path / "parts", **given), 110)
    finish(train_student(out=tmp_path / "parts", resume=True, **given))
    whole, parts = (load_file(tmp_path / name / "student/student.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(parts[name], whole[name]) for name in whole)


def test_an_interruption_before_the_first_checkpoint_begins_anew(text_cache, tmp_path):
    given = {**FAST, "cache": text_cache, "steps": 30, "objective": "kl"}
    stop_at(train_student(out=tmp_path / "run", **given), 20)
    finish(train_student(out=tmp_path / "run", resume=True, **given))
    assert [line["step"] for line in lines_of(tmp_path / "run")] == [10, 20, 30, 30]


def test_a_finished_run_is_not_trained_again(run, text_cache):
    out, summary, _ = run
    given = {**FAST, "cache": text_cache, "out": out, "steps": 120, "objective": "kl,ce"}
    before = (out / "student/student.safetensors").stat().st_mtime_ns
    assert finish(train_student(resume=True, **given)) == summary
    assert (out / "student/student.safetensors").stat().st_mtime_ns == before
    with pytest.raises(UsageError, match="a run already stands at"):
        finish(train_student(**given))


def test_other_settings_or_another_cache_are_refused_by_field(run, text_cache, tmp_path):
    out, *_ = run
    given = {**FAST, "cache": text_cache, "out": out, "steps": 120, "objective": "kl,ce", "resume": True}
    with pytest.raises(IdentityError) as caught:
        finish(train_student(**{**given, "seed": 3, "student": "bert:1x128"}))
    assert caught.value.fields == [("seed", 0, 3), ("student.width", 64, 128)]
    other = shutil.copytree(text_cache, tmp_path / "cache")
    finish(fit_probe(cache=other))
    with pytest.raises(IdentityError) as caught:
        finish(train_student(**{**given, "cache": other}))
    assert [field for field, *_ in caught.value.fields] == ["cache", "targets.logits"]


def test_a_cache_that_grew_is_no_reason_to_lose_a_run(text_cache, tmp_path):
    cache = shutil.copytree(text_cache, tmp_path / "cache")
    given = {**FAST, "cache": cache, "out": tmp_path / "run", "steps": 120, "objective": "cosine"}
    stop_at(train_student(**given), 110)
    finish(fit_probe(cache=cache))
    assert finish(train_student(**given, resume=True))["steps"] == 120


def test_a_run_killed_before_its_summary_still_has_its_losses(run, text_cache, tmp_path):
    cut = shutil.copytree(run[0], tmp_path / "run", ignore=shutil.ignore_patterns("summary.json"))
    given = {**FAST, "cache": text_cache, "out": cut, "steps": 120, "objective": "kl,ce", "resume": True}
    summary = finish(train_student(**given))
    assert summary["training"] == run[1]["training"] and summary["validation"] == run[1]["validation"]


def test_batch_normalisation_refuses_batches_of_one(image_cache, tmp_path):
    given = {"cache": image_cache, "out": tmp_path / "run", "objective": "cosine", "device": "cpu", "workers": 0}
    with pytest.raises(UsageError, match="cannot learn from batches of one"):
        finish(train_student(student="resnet10t", batch_size=1, **given))
    assert not (tmp_path / "run").exists()


def test_labels_seen_are_as_many_as_asked_for(text_cache, tmp_path):
    given = {**FAST, "cache": text_cache, "steps": 2, "labels": 25}
    summary = finish(train_student(out=tmp_path / "ce", objective="ce", **given))
    assert summary["rows"]["training"] + summary["rows"]["validation"] == 25
    summary = finish(train_student(out=tmp_path / "both", objective="kl,ce", **given))
    assert summary["rows"]["training"] + summary["rows"]["validation"] == 160
    assert json.loads((tmp_path / "both/recipe.json").read_text())["labels"] == 25


def test_runs_are_named_after_the_student_and_numbered(text_cache):
    given = {**FAST, "cache": text_cache, "steps": 1, "objective": "kl"}
    assert finish(train_student(**given))["run"] == "runs/bert-1x64"
    assert finish(train_student(**given))["run"] == "runs/bert-1x64-2"
    assert finish(train_student(resume=True, **given))["run"] == "runs/bert-1x64-2"


def test_places_are_recorded_so_that_they_are_found_from_elsewhere(text_cache, tmp_path, monkeypatch):
    shutil.copytree(text_cache, "cache")
    source = open_data("synthetic-text:160")["train"]
    lines = [json.dumps({"id": sample.key, "text": sample.encoded.decode()}) for sample in source.iter(0, 160)]
    Path("texts.jsonl").write_text("\n".join(lines) + "\n")
    here = Path.cwd()
    given = {**FAST, "cache": "cache", "steps": 1, "objective": "kl", "data": ("texts.jsonl",), "validation": 0.0}
    finish(train_student(out="run", **given))
    recipe = json.loads(Path("run/recipe.json").read_text())
    assert recipe["data"] == [str(here / "texts.jsonl")] and recipe["cache"] == str(here / "cache")


def test_data_that_the_teacher_did_not_see_is_refused_before_a_run_is_made(text_cache, tmp_path):
    texts = tmp_path / "texts.jsonl"
    lines = [json.dumps({"id": f"synthetic-text/{number:06d}", "text": "x"}) for number in range(3)]
    texts.write_text("\n".join(lines) + "\n")
    given = {**FAST, "cache": text_cache, "steps": 1, "objective": "kl", "data": (str(texts),), "validation": 0.0}
    with pytest.raises(IdentityError, match="is not what the teacher saw"):
        finish(train_student(out=tmp_path / "run", **given))
    assert not (tmp_path / "run").exists()


def test_what_was_left_out_is_told(text_cache, tmp_path):
    given = {**FAST, "cache": text_cache, "steps": 1, "objective": "kl", "out": tmp_path / "run"}
    training = train_student(data=("synthetic-text:165",), missing="skip", **given)
    assert Message("5 samples not in the cache, skipped") in list(training)
    assert json.loads((tmp_path / "run/summary.json").read_text())["rows"]["missing"] == 5
