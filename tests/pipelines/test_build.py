"""From a recipe to a training run: what is chosen by default, which classes correspond, and what is refused."""

import json
import math
import shutil

import numpy as np
import pytest

from featurecache.errors import CorruptCacheError, IncompleteError, SourceError, UnknownNameError, UsageError
from featurecache.sources import open_data
from featurecache.store.reader import open_cache
from featurecache.store.writer import create_cache
from featurecache.types import NO_LABEL
from pipelines import extract_cache, finish, fit_probe
from pipelines.build import build, open_rows, try_once
from pipelines.load import open_samples
from pipelines.recipe import TrainRecipe
from student.selection import labelled_rows, validation_rows

FAST = {"student": "bert:1x64"}


def built(cache, **recipe):
    given = TrainRecipe(cache=str(cache), **recipe)
    rows = open_rows(given)
    return rows, build(given, rows, device="cpu", workers=0)


@pytest.fixture(scope="module")
def probed_cache(text_cache, tmp_path_factory):
    """The text cache with a probe: logits that have the data's class names."""
    path = tmp_path_factory.mktemp("probed") / "cache"
    shutil.copytree(text_cache, path)
    finish(fit_probe(cache=path))
    return path


def write_texts(folder, source, names):
    """The same samples as text files with other class names, under the same keys."""
    folder.mkdir()
    for split, texts in source.items():
        lines = [
            json.dumps({"id": sample.key, "text": sample.encoded.decode(), "label": names[sample.label]})
            for sample in texts.iter(0, len(texts))
        ]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return str(folder)


def test_texts_with_logits_and_labels(text_cache):
    rows, run = built(text_cache)
    assert rows.objective == "kl,align-uniform,ce" and rows.outputs == ("embedding", "logits")
    assert run.student.backbone.name == "bert:4x256"
    assert run.settings.learning_rate == 5e-4 and run.settings.batch_size == 64
    assert run.settings.steps == 30 * (len(run.training) // 64)


def test_images_without_logits(image_cache):
    rows, run = built(image_cache)
    assert rows.objective == "align-uniform,ce" and rows.outputs == ("embedding",)
    assert run.student.backbone.name == "mobilenetv3_small_100"
    assert run.student.widths == {"labels": 4} and run.settings.learning_rate == 1e-3
    assert run.student.backbone.input.size == 16


def test_rows_are_parted_by_key_into_training_and_validation(text_cache):
    rows, run = built(text_cache, **FAST, validation=0.25)
    held_out = validation_rows(rows.keys, 0.25)
    assert run.validation.rows.tolist() == np.flatnonzero(held_out).tolist()
    assert run.training.rows.tolist() == np.flatnonzero(~held_out).tolist()


def test_the_trial_on_two_rows_leaves_a_memory_as_it_was(text_cache):
    _, run = built(text_cache, **FAST, objective="crd(negatives=20)")
    before = {name: value.clone() for name, value in run.objective.state_dict().items()}
    try_once(run)
    assert all(value.equal(before[name]) for name, value in run.objective.state_dict().items())


def test_a_teachers_own_logits_have_no_classifier_to_regress_on_and_a_probes_have(text_cache, probed_cache):
    with pytest.raises(UsageError, match="srrl needs the classifier") as caught:
        built(text_cache, **FAST, objective="srrl")
    assert "`fc probe --cache CACHE`" in caught.value.hint
    _, run = built(probed_cache, **FAST, objective="srrl")
    try_once(run)
    classifier = open_cache(probed_cache).split("train").classifier("logits")
    assert run.objective.parts["srrl"].weight.equal(classifier[0])


def test_unnamed_logits_and_labels_have_a_classifier_each(text_cache):
    rows, run = built(text_cache, **FAST, objective="kl,ce")
    assert rows.classes is None
    assert run.student.widths == {"logits": 4, "labels": 4} and run.student.shared == {}
    labels = np.concatenate([run.training.labels, run.validation.labels])
    assert sorted(np.unique(labels)) == [0, 1, 2, 3]


def test_classes_of_the_same_names_share_a_classifier(probed_cache):
    rows, run = built(probed_cache, **FAST, objective="kl,ce")
    assert rows.classes.tolist() == [0, 1, 2, 3]
    assert run.student.widths == {"logits": 4} and run.student.shared == {"labels": "logits"}


def test_labels_alone_have_their_own_classifier(probed_cache):
    _, run = built(probed_cache, **FAST, objective="ce")
    assert run.student.widths == {"labels": 4} and run.student.shared == {} and run.training.outputs == ()


def test_classes_in_another_order_are_translated(probed_cache, tmp_path):
    source = open_data("synthetic-text:160")
    # the same classes, first seen in another order: sorted by name they have other numbers
    names = {0: "d", 1: "c", 2: "b", 3: "a"}
    data = (write_texts(tmp_path / "renamed", source, names),)
    rows, run = built(probed_cache, **FAST, data=data, objective="kl,ce")
    assert rows.classes is None and run.student.widths == {"logits": 4, "labels": 4}
    assert rows.joined.changed_labels == 160
    mapped = {name: f"class-{number}" for number, name in names.items()}
    rows, run = built(probed_cache, **FAST, data=data, objective="kl,ce", class_map=mapped)
    assert rows.source.class_names == ("a", "b", "c", "d") and rows.classes.tolist() == [3, 2, 1, 0]
    assert run.student.shared == {"labels": "logits"}
    truth = {source["train"].keys[at]: label for at, label in enumerate(source["train"].labels)}
    keys = [rows.source.keys[sample] for sample in run.training.samples]
    assert run.training.labels.tolist() == [truth[key] for key in keys]


def test_few_labels_are_chosen_by_key_and_the_other_rows_still_teach(text_cache):
    rows, run = built(text_cache, **FAST, objective="kl,ce", labels=20)
    seen = labelled_rows(rows.keys, rows.joined.labels, 20)
    everything = np.concatenate([run.training.rows, run.validation.rows])
    labels = np.concatenate([run.training.labels, run.validation.labels])
    assert len(everything) == 160
    assert set(everything[labels != NO_LABEL]) == set(np.flatnonzero(seen))
    assert (rows.joined.labels[everything[labels != NO_LABEL]] == labels[labels != NO_LABEL]).all()


@pytest.mark.parametrize("objective", ["dkd", "kl(rest=label),cosine", "dkd,ce"])
def test_labels_are_numbers_of_logits_for_what_looks_at_both(probed_cache, tmp_path, objective):
    source = open_data("synthetic-text:160")
    data = (write_texts(tmp_path / "renamed", source, ["a", "b", "c", "d"]),)
    mapped = {"a": "class-2", "b": "class-0", "c": "class-3", "d": "class-1"}
    rows, run = built(probed_cache, **FAST, data=data, objective=objective, class_map=mapped)
    own = dict(zip(rows.joined.rows.tolist(), rows.joined.labels.tolist(), strict=True))
    assert "labels" not in run.student.widths
    for row, label in zip(run.training.rows.tolist(), run.training.labels.tolist(), strict=True):
        assert label == [2, 0, 3, 1][own[row]]
    try_once(run)


@pytest.mark.parametrize(("objective", "says"), [("dkd", "dkd"), ("kl(rest=label)", r"kl\(rest=label\)")])
def test_classes_that_do_not_correspond_are_refused(text_cache, objective, says):
    with pytest.raises(UsageError, match=f"{says} needs each label's own logit") as caught:
        built(text_cache, **FAST, objective=objective)
    assert "--class-map" in caught.value.hint and "fc probe" in caught.value.hint


def test_samples_are_nested_and_those_with_labels_first(text_cache):
    _, run = built(text_cache, **FAST, objective="kl,ce", labels=40)
    whole, validation = set(run.training.rows), run.validation.rows
    labelled = {row for row, label in zip(run.training.rows, run.training.labels, strict=True) if label != NO_LABEL}
    smaller = set()
    for count in (20, len(labelled), 70, len(whole)):
        _, run = built(text_cache, **FAST, objective="kl,ce", labels=40, samples=count)
        found = set(run.training.rows)
        assert len(run.training) == len(found) == count and smaller <= found <= whole
        assert found <= labelled if count <= len(labelled) else labelled <= found
        assert (run.validation.rows == validation).all()  # what judges stays as it was
        smaller = found
    with pytest.raises(UsageError, match=f"cannot choose 161 samples: there are {len(whole)} to train on"):
        built(text_cache, **FAST, objective="kl,ce", samples=161)
    _, run = built(text_cache, **FAST, objective="ce", labels=40, samples=20)
    assert set(run.training.rows) < labelled and len(run.training) == 20


def test_samples_without_a_label_come_last(text_cache, tmp_path):
    source = open_data("synthetic-text:160")["train"]
    lines = [{"id": sample.key, "text": sample.encoded.decode()} for sample in source.iter(0, 160)]
    for line in lines[::4]:
        line["label"] = "known"
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    _, run = built(text_cache, **FAST, data=(str(tmp_path / "texts.jsonl"),), samples=50)
    held_out = validation_rows(source.keys, 0.1)
    labelled = {source.keys[at] for at in range(0, 160, 4) if not held_out[at]}
    assert labelled <= {source.keys[sample] for sample in run.training.samples} and len(run.training) == 50


def test_what_came_later_is_kept_only_where_it_was_chosen():
    assert not {"tokenizer", "samples"} & TrainRecipe().to_json().keys()
    chosen = TrainRecipe(tokenizer="tokenizer.json", samples=3).to_json()
    assert (chosen["tokenizer"], chosen["samples"]) == ("tokenizer.json", 3)


def test_where_labels_are_all_that_teaches_only_labelled_rows_do(text_cache):
    rows, run = built(text_cache, **FAST, objective="ce", labels=20)
    assert len(run.training) + len(run.validation) == 20
    assert set(run.training.rows) <= set(np.flatnonzero(labelled_rows(rows.keys, rows.joined.labels, 20)))


def test_sizes_and_lengths_of_the_students_own(text_cache, image_cache):
    _, run = built(image_cache, img_size=32)
    assert run.student.backbone.input.size == 32 and run.student.backbone.input.crop_pct == 1.0
    assert next(run.training.in_order(2)).inputs["images"].shape == (2, 3, 32, 32)
    _, run = built(text_cache, **FAST, max_length=9)
    assert next(run.training.in_order(4)).inputs["ids"].shape == (4, 9)


def test_the_seed_decides_the_first_weights(text_cache):
    first, second, other = (
        built(text_cache, **FAST, seed=seed)[1].student.heads["logits"].weight for seed in (1, 1, 2)
    )
    assert first.equal(second) and not first.equal(other)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"validation": 1.0}, "--validation and --max-invalid are parts"),
        ({"validation": -0.1}, "--validation and --max-invalid are parts"),
        ({"max_invalid": 1.5}, "--validation and --max-invalid are parts"),
        ({"epochs": 0.0}, "more than 0 epochs"),
        ({"epochs": math.nan}, "more than 0 epochs"),
        ({"epochs": math.inf}, "more than 0 epochs"),
        ({"steps": 0}, "at least 1 step"),
        ({"batch_size": 0}, "--batch-size is 0"),
        ({"labels": 0}, "--labels is 0"),
        ({"samples": 0}, "--samples is 0"),
        ({"img_size": 0}, "--img-size is 0"),
        ({"max_length": 1}, "--max-length is 1"),
        ({"seed": -1}, "--seed is -1"),
    ],
)
def test_impossible_recipes_are_refused_where_they_are_made(recipe, message):
    with pytest.raises(UsageError, match=message):
        TrainRecipe(**recipe)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"learning_rate": 0.0}, "learning rate must be positive"),
        ({"weight_decay": -1.0}, "decay and clip not negative"),
        ({"warmup": 2.0}, "warm-up between 0 and 1"),
        ({"clip": -1.0}, "decay and clip not negative"),
        ({"precision": "float64"}, "unknown precision 'float64'"),
        ({"labels": 161}, "cannot choose 161 labels: 160 usable rows have one"),
        ({"validation": 0.999}, "no row is left to train on"),
        ({"student": "bert:1x200"}, "no BERT has 1 layers of width 200"),
        ({"student": "resnet18"}, "takes image inputs, but the data is text"),
        ({"objective": "kl:0"}, "every weight in 'kl:0' is 0"),
        ({"objective": "kl(temperature=0)"}, "kl: temperature is 0"),
        ({"class_map": {"class-0": "x"}}, "the class map leaves out 'class-1'"),
        ({"class_map": {f"class-{number}": "x" for number in range(4)}}, "names 'x', which is not a class"),
    ],
)
def test_recipes_that_do_not_fit_are_refused(text_cache, recipe, message):
    with pytest.raises(UsageError, match=message):
        built(text_cache, **{**FAST, **recipe})


@pytest.mark.parametrize(
    ("recipe", "error", "message"),
    [
        ({"split": "tset"}, UnknownNameError, "'tset'"),
        ({"objective": "lk"}, UnknownNameError, "no objective is called 'lk'"),
        ({"data": ("nowhere",)}, SourceError, "no data set at 'nowhere'"),
        ({"data": ("synthetic-text:150",)}, None, ""),
        ({"data": ("synthetic-text:170",)}, UsageError, "10 of 170 samples are not in the cache"),
    ],
)
def test_what_is_not_there_is_named(text_cache, recipe, error, message):
    if error is None:
        assert len(built(text_cache, **FAST, **recipe)[0].keys) == 150
        return
    with pytest.raises(error, match=message):
        built(text_cache, **FAST, **recipe)


def test_missing_samples_may_be_skipped_and_nothing_else_said(text_cache):
    rows, _ = built(text_cache, **FAST, data=("synthetic-text:170",), missing="skip")
    assert rows.joined.missing == 10 and len(rows.keys) == 160
    with pytest.raises(Exception, match="missing"):
        TrainRecipe(missing="ignore")


def test_logits_that_a_cache_lacks_are_refused_with_the_remedy(image_cache):
    with pytest.raises(UsageError, match="'kl' needs logits") as caught:
        built(image_cache, objective="kl")
    assert "fc probe" in caught.value.hint


def test_no_cache_and_an_unfinished_one(tmp_path):
    with pytest.raises(UsageError, match="there is no cache at"):
        built(tmp_path / "none")
    run = extract_cache(teacher="random", data="synthetic-text:40", out=tmp_path / "cache", workers=0, device="cpu")
    next(event for event in run if "list" in str(event))
    run.close()
    with pytest.raises(IncompleteError, match="is not sealed"):
        built(tmp_path / "cache")


def test_data_that_moved_are_asked_for(text_cache, tmp_path):
    names = {number: f"class-{number}" for number in range(4)}
    data = write_texts(tmp_path / "data", open_data("synthetic-text:160"), names)
    cache = tmp_path / "cache"
    finish(extract_cache(teacher="random", data=data, out=cache, workers=0, device="cpu"))
    (tmp_path / "data").rename(tmp_path / "elsewhere")
    with pytest.raises(SourceError, match="the samples are not where the cache says they were") as caught:
        open_samples(open_cache(cache), "train")
    assert "--data" in caught.value.hint
    rows, _ = built(cache, **FAST)  # their tokens are in the cache
    assert rows.stored is not None and len(rows.keys) == 160
    rows, _ = built(cache, **FAST, data=(str(tmp_path / "elsewhere"),))
    assert len(rows.keys) == 160 and rows.joined.changed_labels == 0


@pytest.mark.parametrize("place", ["train=http://127.0.0.1:9/x.tar", "hf:evil/set", "train=hf:/etc", "imagenet"])
def test_a_cache_does_not_decide_what_is_fetched(tmp_path, monkeypatch, place):
    monkeypatch.delenv("FC_DATA", raising=False)
    create_cache(tmp_path, source={"data": [place]})
    monkeypatch.setattr("pipelines.load.open_data", lambda *_, **__: pytest.fail("an address was opened"))
    with pytest.raises(SourceError, match=f"the cache says its samples are at {place}") as error:
        open_samples(open_cache(tmp_path), "train")
    assert "--data" in error.value.hint


def test_a_damaged_cache_is_not_read(text_cache, tmp_path):
    shutil.copytree(text_cache, tmp_path / "cache")
    (tmp_path / "cache/cache.json").chmod(0o644)
    (tmp_path / "cache/cache.json").write_text("{}")
    with pytest.raises(CorruptCacheError):
        built(tmp_path / "cache")
