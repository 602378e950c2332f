"""Several students of one run: each ends as it would alone, in a directory of its own."""

import json

import pytest
import torch
from safetensors.torch import load_file

from featurecache.errors import IdentityError, UsageError
from pipelines import evaluate_run, finish, train_student
from pipelines.events import Advance, Message

STUDENTS = ("bert:1x64", "bert:2x16")
FAST = {"max_length": 24, "batch_size": 16, "workers": 0, "device": "cpu", "validation": 0.2, "objective": "kl,ce"}


def weights_of(run):
    return load_file(run / "student" / "student.safetensors")


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def lines_of(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def alone(text_cache, tmp_path_factory):
    """Each trained by itself."""
    folder = tmp_path_factory.mktemp("alone")
    for name in STUDENTS:
        finish(train_student(cache=text_cache, out=folder / name.replace(":", "-"), steps=110, student=name, **FAST))
    return folder


def test_each_learns_what_it_learns_alone(text_cache, alone, tmp_path):
    events, training = [], train_student(cache=text_cache, out=tmp_path, steps=110, student=STUDENTS, **FAST)
    while True:
        try:
            events.append(next(training))
        except StopIteration as stop:
            summaries = stop.value["runs"]
            break
    assert [summary["student"] for summary in summaries] == list(STUDENTS)
    for name, summary in zip(("bert-1x64", "bert-2x16"), summaries, strict=True):
        assert same(weights_of(tmp_path / name), weights_of(alone / name))
        assert lines_of(tmp_path / name) == lines_of(alone / name)
        expected = json.loads((alone / name / "summary.json").read_text())
        differ = {key for key in expected if expected[key] != summary[key]}
        assert differ <= {"run", "seconds"} and summary["run"] == str(tmp_path / name)
        assert finish(evaluate_run(run=tmp_path / name, split="test", features=False))["rows"] == 40
    assert [event.done for event in events if isinstance(event, Advance)][-1] == 110
    assert Message("student bert:2x16, objective kl,ce") in events


def test_an_interrupted_run_goes_on_with_those_that_are_not_finished(text_cache, alone, tmp_path):
    given = {"cache": text_cache, "out": tmp_path, "steps": 110, "student": STUDENTS, **FAST}
    training = train_student(**given)
    for event in training:
        if isinstance(event, Advance) and event.done == 110:
            training.close()  # after the checkpoints of step 100
    finish(train_student(resume=True, **given))
    assert all(same(weights_of(tmp_path / name), weights_of(alone / name)) for name in ("bert-1x64", "bert-2x16"))
    (tmp_path / "bert-2x16/summary.json").unlink()
    kept = (tmp_path / "bert-1x64/student/student.safetensors").stat().st_mtime_ns
    assert len(finish(train_student(resume=True, **given))["runs"]) == 2
    assert (tmp_path / "bert-1x64/student/student.safetensors").stat().st_mtime_ns == kept
    with pytest.raises(IdentityError):
        finish(train_student(resume=True, **{**given, "seed": 9}))


def test_the_same_student_twice_is_refused(text_cache, tmp_path):
    with pytest.raises(UsageError, match="each --student is given once"):
        finish(train_student(cache=text_cache, out=tmp_path / "run", student=("bert:1x16", "bert:1x16"), **FAST))


def test_everyday_options_come_from_the_recipe_to_the_student(text_cache, tmp_path):
    options = {"ema": 0.5, "layer_decay": 0.8, "accumulate": 2, "patience": 1, "steps": 220, "learning_rate": 0.5}
    given = {**FAST, "cache": text_cache, "student": "bert:1x16", "out": tmp_path / "run", **options}
    events, training = [], train_student(track=["tensorboard"], **given)
    while True:
        try:
            events.append(next(training))
        except StopIteration as stop:
            summary = stop.value
            break
    recipe = json.loads((tmp_path / "run/recipe.json").read_text())
    assert {name: recipe[name] for name in options} == options and recipe["precision"] == "float32"
    assert summary["steps"] == 200  # it was validated at 100, and no better at 200
    message = "stopped after 200 steps: validation has not become better since"
    assert Message(message) in events and list((tmp_path / "run/tensorboard").iterdir())
    assert same(weights_of(tmp_path / "run"), load_file(tmp_path / "run/checkpoints/best.safetensors"))
    with pytest.raises(IdentityError) as caught:
        finish(train_student(resume=True, **{**given, "ema": 0.9}))
    assert caught.value.fields == [("ema", 0.5, 0.9)]


def test_early_stopping_without_validation_is_refused(text_cache, tmp_path):
    given = {**FAST, "cache": text_cache, "student": "bert:1x16", "validation": 0.0, "patience": 2}
    with pytest.raises(UsageError, match="rows are needed to validate on"):
        finish(train_student(out=tmp_path / "run", **given))


def test_a_tracker_that_is_none_is_refused_before_a_run_is_made(text_cache, tmp_path):
    given = {**FAST, "cache": text_cache, "student": "bert:1x16", "out": tmp_path / "run"}
    with pytest.raises(UsageError, match="there is no tracker 'no_such_tracker'"):
        finish(train_student(track=["no_such_tracker"], **given))
    assert not (tmp_path / "run").exists()
