"""Pre-training on texts: what a run leaves, how it goes on, what it never sees, and students that start from it."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM, AutoTokenizer

from featurecache.errors import IdentityError, UsageError
from featurecache.inputs import TextInput
from featurecache.sources import open_data
from pipelines import evaluate_run, finish, pretrain_student, train_student
from pipelines.events import Advance, Message
from pipelines.pretrain import PretrainRecipe, make_tokenizer
from student import trainer
from student.export import load_student

HERE = {"workers": 0, "device": "cpu"}
FAST = {"student": "bert:1x16", "vocabulary": 160, "max_length": 16, "batch_size": 8, "validation": 0.2, **HERE}
GIVEN = {"data": "synthetic-text:160", "steps": 110, "learning_rate": 0.01, **FAST}


def unit(word, key):
    return int.from_bytes(hashlib.sha256(f"{word}/{key}".encode()).digest()[:8], "little") / 2**64


def lines_of(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def weights_of(run):
    return load_file(run / "student" / "model.safetensors")


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(value, right[name]) for name, value in left.items())


def told(run):
    return [event.text for event in run if isinstance(event, Message)]


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A finished run of 110 steps: (its folder, its summary)."""
    out = tmp_path_factory.mktemp("runs") / "run"
    return out, finish(pretrain_student(out=out, **GIVEN))


def test_what_a_finished_run_leaves(pretrained):
    out, summary = pretrained
    files = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    student = {f"student/{name}" for name in ("config.json", "model.safetensors", "tokenizer.json")}
    kept = {"recipe.json", "metrics.jsonl", "summary.json", "tokenizer.json"}
    assert {name for name in files if not name.startswith("checkpoints/last/")} == kept | student
    assert json.loads((out / "summary.json").read_text()) == summary
    held_out = sum(unit("validation", key) < 0.2 for key in open_data("synthetic-text:160")["train"].keys)
    assert summary["rows"] == {"training": 160 - held_out, "validation": held_out} and 15 < held_out < 50
    assert summary["run"] == str(out) and summary["steps"] == 110 and summary["student"] == "bert:1x16"
    model = AutoModelForMaskedLM.from_pretrained(out / "student")
    assert summary["parameters"] == sum(value.numel() for value in model.parameters())
    assert summary["vocabulary"] == model.config.vocab_size == len(AutoTokenizer.from_pretrained(out / "student"))
    assert summary["seconds"] > 0
    lines = lines_of(out)
    assert [line["step"] for line in lines if "validation" not in line] == list(range(10, 111, 10))
    assert [line["step"] for line in lines if "validation" in line] == [100, 110]
    assert summary["validation"] == lines[-1]["validation"] and summary["validation"].keys() == {"loss", "mlm"}
    assert lines[-2]["mlm"] < lines[0]["mlm"] - 0.2


def test_the_tokenizer_is_that_of_all_texts(pretrained):
    text = (pretrained[0] / "tokenizer.json").read_text(encoding="utf-8")
    assert text == finish(make_tokenizer(open_data("synthetic-text:160")["train"], 160))
    assert text == (pretrained[0] / "student/tokenizer.json").read_text(encoding="utf-8")
    recipe = json.loads((pretrained[0] / "recipe.json").read_text())
    assert recipe["input"] == TextInput(text, max_length=16).to_json() and recipe["vocabulary"] == 160


def test_a_finished_run_is_not_trained_again(pretrained):
    out, summary = pretrained
    before = (out / "student/model.safetensors").stat().st_mtime_ns
    assert finish(pretrain_student(out=out, resume=True, **GIVEN)) == summary
    assert (out / "student/model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(UsageError, match="a run already stands at"):
        finish(pretrain_student(out=out, **GIVEN))


def stop_at(run, step):
    for event in run:
        if isinstance(event, Advance) and event.stage == "train" and event.done == step:
            run.close()


def test_an_interrupted_run_goes_on_to_the_same_bits(pretrained, tmp_path):
    stop_at(pretrain_student(out=tmp_path / "run", **GIVEN), 110)
    assert not (tmp_path / "run/summary.json").exists() and not (tmp_path / "run/student").exists()
    torch.manual_seed(77)
    assert f"{tmp_path / 'run'} goes on from step 100" in told(
        pretrain_student(out=tmp_path / "run", resume=True, **GIVEN)
    )
    assert same(weights_of(tmp_path / "run"), weights_of(pretrained[0]))
    assert lines_of(tmp_path / "run") == lines_of(pretrained[0])


def test_an_interruption_before_the_first_checkpoint_begins_anew(tmp_path):
    given = {**GIVEN, "steps": 20, "out": tmp_path / "run"}
    stop_at(pretrain_student(**given), 10)
    (tmp_path / "run/tokenizer.json").unlink()  # as if it ended even earlier
    assert f"{tmp_path / 'run'} has no checkpoint yet and begins anew" in told(pretrain_student(resume=True, **given))
    finish(pretrain_student(**{**given, "out": tmp_path / "whole"}))
    assert same(weights_of(tmp_path / "run"), weights_of(tmp_path / "whole"))


@pytest.mark.parametrize(
    ("changes", "fields"),
    [
        ({"seed": 3, "learning_rate": 0.02}, {"learning_rate", "seed"}),
        ({"student": "bert:1x32"}, {"student"}),
        ({"vocabulary": 150}, {"vocabulary"}),
        ({"limit": 150}, {"texts"}),
        ({"data": "synthetic-text:159"}, {"data", "texts"}),
        ({"max_length": 17}, {"input.max_length", "max_length"}),
    ],
)
def test_other_settings_or_texts_are_refused_by_field(pretrained, tmp_path, changes, fields):
    out, _ = pretrained
    unfinished = shutil.copytree(out, tmp_path / "run", ignore=shutil.ignore_patterns("summary.json"))
    for run in (out, unfinished):
        with pytest.raises(IdentityError) as caught:
            finish(pretrain_student(out=run, resume=True, **{**GIVEN, **changes}))
        assert {field for field, *_ in caught.value.fields} == fields


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": "synthetic:40"}, "pretraining is for texts, and these are images"),
        ({"student": "resnet18"}, "resnet18 takes image inputs"),
        ({"student": "bert:tiny"}, "cannot read the student"),
        ({"validation": 0.9999}, "no text is left to train on"),
        ({"validation": 1.0}, "--validation is a part of the texts"),
        ({"epochs": 0.0}, "more than 0 epochs"),
        ({"epochs": float("nan")}, "more than 0 epochs"),
        ({"steps": 0}, "at least 1 step"),
        ({"seed": -1}, "--seed is -1"),
        ({"max_length": 2}, "--max-length is 2"),
        ({"batch_size": 0}, "--batch-size is 0"),
        ({"vocabulary": 20}, "a vocabulary of 20 does not hold"),
        ({"tokenizer": "missing.json"}, "cannot read the tokenizer missing.json"),
        ({"precision": "float8"}, "unknown precision 'float8'"),
    ],
)
def test_what_cannot_be_is_refused_before_a_run_is_made(tmp_path, changes, message):
    with pytest.raises(UsageError, match=message):
        finish(pretrain_student(out=tmp_path / "run", **{**GIVEN, **changes}))
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_something_else_is_refused_at_once(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UsageError, match="is not empty and not a run"):
        next(pretrain_student(out=tmp_path, **GIVEN))


def test_every_setting_is_kept(tmp_path):
    given = {**GIVEN, "steps": 1, "epochs": 3.0, "weight_decay": 0.5, "warmup": 0.5, "precision": "bfloat16", "seed": 5}
    finish(pretrain_student(out=tmp_path / "run", **given))
    recipe = json.loads((tmp_path / "run/recipe.json").read_text())
    asked = {name: value for name, value in given.items() if name not in ("workers", "device")}
    assert {name: recipe[name] for name in asked} == {**asked, "data": ["synthetic-text:160"]}
    assert recipe.keys() == {*PretrainRecipe.__slots__, "texts", "input"}


@pytest.fixture
def seen(monkeypatch):
    """The keys of every batch that is trained on, and that is validated on; and the tokens that those show."""
    found = {"training": [], "validation": [], "shown": []}
    real = trainer.train_together

    def watched(trainees, data, settings, *, validation):
        rows = data.shuffled(settings.batch_size, seed=settings.seed, start=0, stop=settings.steps)
        found["training"] += [key for batch in rows for key in data.keys_of(batch.rows)]
        for batch in validation.in_order(settings.batch_size):
            found["validation"] += validation.keys_of(batch.rows)
            found["shown"] += batch.inputs["ids"].tolist()
        return real(trainees, data, settings, validation=validation)

    monkeypatch.setattr(trainer, "train_together", watched)
    return found


def test_texts_that_validate_are_never_trained_on(seen, tmp_path):
    given = {name: value for name, value in GIVEN.items() if name != "steps"}
    summary = finish(pretrain_student(out=tmp_path / "run", **given, epochs=2.0))
    keys = open_data("synthetic-text:160")["train"].keys
    held_out = {key for key in keys if unit("validation", key) < 0.2}
    assert set(seen["validation"]) == held_out and len(seen["validation"]) == len(held_out)
    assert set(seen["training"]) <= set(keys) - held_out
    assert summary["steps"] == 2 * ((160 - len(held_out)) // 8)
    assert len(seen["training"]) == summary["steps"] * 8


def test_the_seed_decides_what_is_hidden(seen, tmp_path):
    shown = []
    for number, seed in enumerate((1, 1, 2)):
        finish(pretrain_student(out=tmp_path / str(number), **{**GIVEN, "steps": 1, "seed": seed}))
        shown.append([*seen["shown"]])
        seen["shown"].clear()
    assert shown[0] == shown[1] and sum(map(list.__ne__, shown[0], shown[2])) > 20


def test_texts_that_cannot_be_read_are_told_and_left_out(seen, tmp_path):
    texts = [f"some words, {number}" if number % 4 else "" for number in range(24)]
    lines = [json.dumps({"id": f"key-{number}", "text": text}) for number, text in enumerate(texts)]
    (tmp_path / "texts.jsonl").write_text("\n".join(lines) + "\n")
    given = {**GIVEN, "data": str(tmp_path / "texts.jsonl"), "steps": None, "epochs": 2.0, "batch_size": 1}
    assert "6 of 24 texts are left out: 6 empty text" in told(pretrain_student(out=tmp_path / "run", **given))
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert sum(summary["rows"].values()) == 18 and summary["steps"] == 2 * summary["rows"]["training"]
    read = {f"key-{number}" for number in range(24) if number % 4}
    assert {*seen["training"], *seen["validation"]} == read


def test_without_validation_every_text_is_trained_on(tmp_path):
    summary = finish(pretrain_student(out=tmp_path / "run", **{**GIVEN, "validation": 0.0, "steps": 2}))
    assert summary["rows"] == {"training": 160, "validation": 0} and summary["validation"] == {}


def test_a_tokenizer_that_is_given_is_taken(pretrained, tmp_path):
    own = finish(make_tokenizer(open_data("synthetic-text:80")["train"], 100))
    (tmp_path / "tokenizer.json").write_text(own, encoding="utf-8")
    for place in (tmp_path, tmp_path / "tokenizer.json"):
        out = tmp_path / f"run-{place.name}"
        summary = finish(pretrain_student(out=out, **{**GIVEN, "steps": 1, "tokenizer": str(place)}))
        assert summary["vocabulary"] == 100
        assert (out / "student/tokenizer.json").read_text(encoding="utf-8") == own


STUDENT = {"student": "bert:1x16", "steps": 1, "batch_size": 16, "validation": 0.2, "learning_rate": 1e-12, **HERE}


def test_a_student_starts_with_its_weights_and_its_tokenizer(pretrained, text_cache, tmp_path):
    run = tmp_path / "run"
    given = {"cache": text_cache, "objective": "kl,ce", "init_from": str(pretrained[0]), **STUDENT}
    finish(train_student(out=run, **given))
    student, facts = load_student(run / "student")
    theirs = weights_of(pretrained[0])
    for name, value in student.backbone.network.state_dict().items():
        torch.testing.assert_close(value, theirs[f"bert.{name}"], rtol=0, atol=1e-7)
    own = (pretrained[0] / "tokenizer.json").read_text(encoding="utf-8")
    assert student.backbone.input.tokenizer_json == own
    assert facts["input"] == json.loads((run / "recipe.json").read_text())["input"]
    scores = finish(evaluate_run(run=run, **HERE))
    assert scores["rows"] == 40 and 0 <= scores["accuracy"] <= 1 and scores["student"] == "bert:1x16"
    # and another student from that one, head and all
    finish(train_student(out=tmp_path / "again", **{**given, "init_from": str(run)}))
    again, _ = load_student(tmp_path / "again/student")
    for name, value in again.state_dict().items():
        torch.testing.assert_close(value, student.state_dict()[name], rtol=0, atol=1e-7)


def test_a_tokenizer_that_is_given_wins(pretrained, text_cache, tmp_path):
    given = {"cache": text_cache, "objective": "kl", "tokenizer": str(pretrained[0]), **STUDENT}
    finish(train_student(out=tmp_path / "run", **given))
    student, _ = load_student(tmp_path / "run/student")
    assert student.backbone.input.tokenizer_json == (pretrained[0] / "tokenizer.json").read_text(encoding="utf-8")
    recipe = json.loads((tmp_path / "run/recipe.json").read_text())
    assert recipe["tokenizer"] == str(pretrained[0])
    Path("small.json").write_text(finish(make_tokenizer(open_data("synthetic-text:80")["train"], 100)))
    both = {**given, "init_from": str(pretrained[0]), "tokenizer": "small.json"}
    with pytest.raises(UsageError, match=r"vocab_size \d+ \(here 100\)"):
        finish(train_student(out=tmp_path / "other", **both))
    assert not (tmp_path / "other").exists()


def test_a_tokenizer_is_of_no_use_for_images(image_cache, pretrained):
    with pytest.raises(UsageError, match="--tokenizer cannot be used: the cache's teacher takes images"):
        finish(train_student(cache=image_cache, out="run", tokenizer=str(pretrained[0]), steps=1, **HERE))


def test_an_unfinished_run_is_no_start(text_cache, tmp_path):
    stop_at(pretrain_student(out=tmp_path / "run", **GIVEN), 10)
    with pytest.raises(UsageError, match="is not finished"):
        finish(train_student(cache=text_cache, out="run", init_from=str(tmp_path / "run"), **STUDENT))
