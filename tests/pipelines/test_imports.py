"""What a teacher said elsewhere becomes a cache like any other: the numbers, the rows, and all that is made of it."""

import json

import numpy as np
import pytest
import torch

from featurecache.errors import IdentityError, TeacherError, UsageError
from featurecache.inputs import input_from_json
from featurecache.sources import open_data
from featurecache.store import layout
from featurecache.store.objects import LocalObjects
from featurecache.store.reader import open_cache
from featurecache.store.verify import Finding, verify
from featurecache.types import Reason
from pipelines import (
    describe_cache,
    evaluate_run,
    export_run,
    extend_cache,
    extract_cache,
    finish,
    import_probabilities,
    train_student,
)
from pipelines.build import build, open_rows
from pipelines.events import Advance, Message
from pipelines.recipe import TrainRecipe
from tests.bad_data import images_with_a_truncated_one
from tests.crash.checks import content_of, files_of
from tests.records.answer_files import chances, write

CLASSES = 4
TEXTS = {"data": "synthetic-text:60", "tokenizer": "random", "workers": 0}
IMAGES = {"data": "synthetic:130", "img_size": 16, "splits": ["train"], "workers": 0}


def said_of(data, *, without=()):
    """Records of every sample of a data set, and float64 (classes,) of each by split and key."""
    records, said = [], {}
    for number, (split, source) in enumerate(open_data(data).items()):
        for key, row in zip(source.keys, chances(len(source), CLASSES, seed=number), strict=True):
            said[split, key] = row
            records += [] if key in without else [{"key": key, "split": split, "probabilities": row.tolist()}]
    return records, said


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """A cache of what was said of texts; one has no record, and one record is about none."""
    folder = tmp_path_factory.mktemp("texts")
    records, said = said_of("synthetic-text:60", without=["synthetic-text/000007"])
    records.append({"key": "other", "split": "train", "probabilities": [1, 0, 0, 0]})
    file = write(folder / "Their answers.jsonl", records)
    facts = finish(import_probabilities(file=file, out=folder / "cache", **TEXTS))
    return folder / "cache", said, facts, file


def test_the_cached_softmax_is_what_was_said(texts):
    path, said, facts, _ = texts
    cache = open_cache(path)
    assert facts["teacher"] == "Their-answers" and facts["records"] == {"count": 74, "unused": 1}
    assert facts["splits"]["train"]["part"] == "train/their-answers"
    for split, count in {"train": 60, "test": 15}.items():
        reader = cache.split(split)
        expected = np.array([said[split, key] for key in reader.keys])
        valid = reader.valid()
        assert valid.sum() == count - 1 and reader.keys[int(np.flatnonzero(~valid)[0])] == "synthetic-text/000007"
        assert reader.reasons("logits")[~valid].tolist() == [Reason.NO_OUTPUT]
        assert facts["splits"][split]["invalid"] == {"no output": 1}
        logits = reader.read(np.arange(count))["logits"]
        np.testing.assert_allclose(logits.softmax(1)[valid], expected[valid], atol=1e-6)
        assert (logits.softmax(1)[valid][expected[valid] == 0] == 0).all() and (expected == 0).any()
        assert logits[~valid].isnan().all()
        assert reader.outputs["logits"].classes == tuple(f"class-{number}" for number in range(CLASSES))


def test_what_the_cache_says_of_it(texts):
    path, _, _, file = texts
    assert not [found for found in verify(LocalObjects(path)) if isinstance(found, Finding)]
    part = describe_cache(path)["splits"]["train"]["their-answers"]
    assert part["teacher"] == "Their-answers" and len(part["records_sha256"]) == 64
    assert part["outputs"] == {"logits": "[4] float32: nothing is lost, on 59 rows"}
    spec = open_cache(path).split("train").teacher_part("logits")
    assert spec.provenance["records"] == {
        "file": "Their answers.jsonl",
        "count": 74,
        "unused": 1,
        "columns": {"key": "key", "split": "split", "values": "probabilities"},
    }
    assert str(file.parent) not in json.dumps(spec.to_json())
    tokenizer = open_cache(path).asset(spec, "tokenizer.json").decode()
    assert input_from_json(spec.facts["input"], tokenizer).max_length == 128


def test_hashes_are_those_of_a_teacher_with_the_same_input(texts, tmp_path):
    options = {"data": "synthetic-text:60", "out": tmp_path / "cache", "splits": ["train"], "device": "cpu"}
    finish(extract_cache(teacher="random", workers=0, **options))
    extracted, imported = (open_cache(path).split("train") for path in (tmp_path / "cache", texts[0]))
    assert extracted.content_hashes.tolist() == imported.content_hashes.tolist()
    assert extracted.input_hashes("embedding").tolist() == imported.input_hashes("logits").tolist()
    assert 0 not in imported.input_hashes("logits")  # a sample without a record was decoded too


def test_a_student_sees_the_probabilities_and_the_loss_is_the_closed_form(texts):
    path, said, _, _ = texts
    recipe = TrainRecipe(cache=str(path), student="bert:1x16", objective="kl(temperature=1)", max_invalid=0.1)
    rows = open_rows(recipe)
    run = build(recipe, rows, device="cpu", workers=0)
    keys = np.array(rows.reader.keys)
    for batch in run.training.in_order(16):
        p = torch.tensor(np.array([said["train", key] for key in keys[batch.rows.numpy()]]))
        torch.testing.assert_close(batch.dense("logits").softmax(1).double(), p, rtol=0, atol=1e-6)
        with torch.inference_mode():
            outputs = run.student(batch.inputs)
            loss, _ = run.objective(outputs, batch)
        log_q = outputs["logits"].double().log_softmax(1)
        cross_entropy, entropy = -(p * log_q).sum(1), torch.special.entr(p).sum(1)
        assert float(loss) == pytest.approx(float((cross_entropy - entropy).mean()), abs=1e-5)


def test_train_evaluate_and_export(texts, tmp_path):
    path, said, _, _ = texts
    options = {"student": "bert:1x16", "steps": 2, "workers": 0, "device": "cpu", "max_invalid": 0.1}
    finish(train_student(cache=path, out=tmp_path / "run", **options))
    scores = finish(evaluate_run(run=tmp_path / "run", max_invalid=0.1, workers=0, device="cpu"))
    source = open_data("synthetic-text:60")["test"]
    right = [
        said["test", key].argmax() == label
        for key, label in zip(source.keys, source.labels, strict=True)
        if key != "synthetic-text/000007"
    ]
    assert scores["split"] == "test" and scores["rows"] == 14 and scores["teacher"] == "Their-answers"
    assert scores["teacher_accuracy"] == pytest.approx(np.mean(right))
    facts = finish(export_run(run=tmp_path / "run", to=["transformers"]))
    card = (tmp_path / "run/export/transformers/README.md").read_text()
    assert "SHA-256 of the file with what it said" in card and facts["exports"]


def test_a_student_stops_where_many_samples_have_no_record(texts, tmp_path):
    with pytest.raises(UsageError, match="1 of 60 rows are invalid, more than --max-invalid"):
        finish(train_student(cache=texts[0], out=tmp_path / "run", student="bert:1x16", steps=1, device="cpu"))


def test_bad_samples_stay_bad_and_keep_their_reason(tmp_path):
    source = images_with_a_truncated_one(tmp_path / "images")
    rows = chances(5, 2)
    file = write(
        tmp_path / "x.csv", [{"key": k, "dog": p[0], "cat": p[1]} for k, p in zip(source.keys, rows, strict=True)]
    )
    facts = finish(import_probabilities(file=file, data=str(tmp_path / "images"), out=tmp_path / "cache", workers=0))
    assert facts["splits"]["train"]["invalid"] == {"corrupt image": 1}
    reader = open_cache(tmp_path / "cache").split()
    assert reader.outputs["logits"].classes == ("cat", "dog")  # as the data have them, whatever the columns' order
    valid = reader.valid()
    found = reader.read(np.flatnonzero(valid))["logits"].softmax(1)
    expected = [rows[source.keys.index(key)][::-1] for key, good in zip(reader.keys, valid, strict=True) if good]
    np.testing.assert_allclose(found, np.array(expected), atol=1e-6)
    assert reader.teacher_part("logits").facts["input"]["size"] == 224


@pytest.fixture
def small_shards(monkeypatch):
    """Shards of 32 rows: those of logits have 16 bytes a row."""
    monkeypatch.setattr(layout, "_MAX_SHARD_BYTES", 32 * 16)


def test_an_interrupted_import_goes_on_and_ends_in_the_same_cache(tmp_path, small_shards):
    records, _ = said_of("synthetic:130", without=["synthetic/000040"])
    file = write(tmp_path / "x.parquet", records)
    finish(import_probabilities(file=file, out=tmp_path / "whole", **IMAGES))
    for at in (1, 64, 100):  # interrupted again and again, in the middle of a shard too
        run = import_probabilities(file=file, out=tmp_path / "cut", **IMAGES)
        for event in run:
            if isinstance(event, Advance) and event.stage == "extract train" and event.done >= at:
                break
        run.close()
        assert not (tmp_path / "cut/seals").exists()
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "cut/train").rglob("c/**/*") if path.is_file()}
    assert made
    finish(import_probabilities(file=file, out=tmp_path / "cut", **IMAGES))
    assert content_of(files_of(tmp_path / "cut")) == content_of(files_of(tmp_path / "whole"))
    assert all(path.stat().st_mtime_ns == time for path, time in made.items())
    again = finish(import_probabilities(file=file, out=tmp_path / "cut", **IMAGES))
    assert again["digest"] == open_cache(tmp_path / "cut").seal.digest


def altered(folder, name="Their answers.jsonl"):
    """The same records with another number in one of them."""
    records, _ = said_of("synthetic-text:60")
    records[3]["probabilities"] = [0.25] * CLASSES
    return write(folder / name, records)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"file": altered}, "teacher.records_sha256"),
        ({"name": "other"}, "teacher.model"),
        ({"classes": ["a", "b", "c", "d"]}, "teacher.config.classes_sha256"),
        ({"max_length": 64}, "input.max_length"),
        ({"encode": "float16"}, "encodings.logits"),
    ],
)
def test_another_import_into_the_same_cache_is_refused(texts, tmp_path, change, field):
    path, _, _, file = texts
    options = {"file": file, "out": path, **TEXTS, **change}
    options["file"] = options["file"](tmp_path) if callable(options["file"]) else options["file"]
    before = files_of(path)
    with pytest.raises(IdentityError) as error:
        finish(import_probabilities(**options))
    assert field in [name for name, _, _ in error.value.fields] and error.value.exit_code == 4
    assert files_of(path) == before


def test_a_further_split_is_imported_from_the_same_file(texts, tmp_path):
    file = texts[3]
    first = finish(import_probabilities(file=file, out=tmp_path / "cache", **TEXTS, splits=["train"]))
    second = finish(import_probabilities(file=file, out=tmp_path / "cache", **TEXTS, splits=["test"]))
    cache = open_cache(tmp_path / "cache")
    assert first["digest"] != second["digest"] == cache.seal.digest and cache.splits == ["test", "train"]
    made_by = {cache.split(split).made_by("logits") for split in cache.splits}
    assert len(made_by) == 1


def test_its_teacher_cannot_be_run_and_another_can_be_added(texts, tmp_path):
    file = texts[3]
    finish(import_probabilities(file=file, out=tmp_path / "cache", **TEXTS))
    with pytest.raises(TeacherError, match="was imported: its teacher is not known"):
        finish(extend_cache(cache=tmp_path / "cache", views="+1", workers=0, device="cpu"))
    finish(extend_cache(cache=tmp_path / "cache", teacher="random", workers=0, device="cpu"))
    assert list(open_cache(tmp_path / "cache").split("train").by_teacher) == ["their-answers", "random-text"]


def test_encodings_and_stored_images(tmp_path):
    records, said = said_of("synthetic:130")
    file = write(tmp_path / "x.jsonl.gz", records)
    options = {**IMAGES, "encode": "topk:2", "temperatures": (1.0,), "store_inputs": 16, "limit": 20}
    facts = finish(import_probabilities(file=file, out=tmp_path / "cache", **options))
    assert facts["splits"]["train"]["rows"] == 20 and facts["records"]["unused"] == len(records) - 20
    reader = open_cache(tmp_path / "cache").split()
    top = reader.read(np.arange(20))["logits"]
    expected = np.array([said["train", key] for key in reader.keys])
    found = (top.values - top.logsumexp).exp()
    np.testing.assert_allclose(found, -np.sort(-expected, axis=1)[:, :2], atol=2e-3)
    assert reader.stored_inputs().size == 16


def test_what_was_found_is_told(tmp_path):
    records, _ = said_of("synthetic-text:60", without=["synthetic-text/000007"])
    records = [{**record, "text": "x"} for record in records if record["split"] == "train"]
    run = import_probabilities(file=write(tmp_path / "x.jsonl", records), out=tmp_path / "c", splits=["train"], **TEXTS)
    told = [event.text for event in run if isinstance(event, Message)]
    assert told[1:4] == [
        "59 records of 4 probabilities; the classes are the data's, in their order: class-0, class-1, class-2, class-3",
        "columns that are not read: text",
        "1 of 60 samples of train have no record, such as 'synthetic-text/000007': their rows are invalid",
    ]


def test_the_same_key_in_two_splits(tmp_path):
    records, _ = said_of("synthetic-text:60")
    without = [{name: record[name] for name in ("key", "probabilities")} for record in records[:60]]
    file = write(tmp_path / "x.jsonl", without)
    with pytest.raises(UsageError, match="is the key of a sample of train and of another one of test") as error:
        finish(import_probabilities(file=file, out=tmp_path / "cache", **TEXTS))
    assert 'column "split"' in error.value.hint and not (tmp_path / "cache").exists()
    # the same sample in two splits has one record
    same = {"data": ["train=synthetic-text:60", "test=synthetic-text:60"], "tokenizer": "random", "workers": 0}
    texts = open_data("synthetic-text:60")["train"]
    lines = [json.dumps({"id": key, "text": texts[row].encoded.decode()}) for row, key in enumerate(texts.keys)]
    (tmp_path / "texts.jsonl").write_text("\n".join(lines))
    same["data"] = [f"{split}={tmp_path / 'texts.jsonl'}" for split in ("train", "test")]
    facts = finish(import_probabilities(file=file, out=tmp_path / "cache", **same))
    assert facts["records"] == {"count": 60, "unused": 0} and set(facts["splits"]) == {"train", "test"}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"tokenizer": None}, "texts need a tokenizer"),
        ({"img_size": 64}, "--img-size cannot be used: the data are texts"),
        ({"data": "synthetic:60"}, "--tokenizer cannot be used: the data are images"),
        ({"tokenizer": "nowhere"}, "no tokenizer is called 'nowhere'"),
        ({"tokenizer": "vit_base"}, "is a timm model, whose tokenizer is not known"),
        ({"tokenizer": __file__}, "is no tokenizer"),
        ({"name": "my teacher/1"}, "--name 'my teacher/1' cannot name a teacher"),
        ({"splits": ["dev"]}, "there is no split 'val'"),
        ({"store_inputs": 32}, "--store-inputs is for images"),
        ({"data": "synthetic-text:60", "key_column": "split"}, "more than one record of 'train'"),
        ({"encode": "float17"}, "float17"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(texts, tmp_path, options, says):
    with pytest.raises(UsageError, match=says):
        finish(import_probabilities(file=texts[3], out=tmp_path / "cache", **{**TEXTS, **options}))
    assert not (tmp_path / "cache").exists()


def test_no_record_about_a_split(texts, tmp_path):
    records, _ = said_of("synthetic-text:60")
    file = write(tmp_path / "x.jsonl", [record for record in records if record["split"] == "train"])
    with pytest.raises(UsageError, match="no record is about a sample of test: a key there is 'test/synthetic-text/0"):
        finish(import_probabilities(file=file, out=tmp_path / "cache", **TEXTS))
