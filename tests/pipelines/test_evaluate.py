"""A trained student beside its teacher: which rows are judged, and scores against an independent count."""

import json
import shutil

import numpy as np
import pytest
import torch

from featurecache.errors import IncompleteError, UsageError
from featurecache.fingerprint import hash_unit
from featurecache.rows import list_rows
from featurecache.sources import open_data
from featurecache.store.objects import LocalObjects
from featurecache.store.reader import open_cache
from featurecache.store.seals import seal
from featurecache.types import NO_LABEL
from pipelines import describe_progress, evaluate_run, extract_cache, finish, fit_probe, train_student
from pipelines.events import Message
from student.export import load_student
from student.selection import validation_rows

FAST = {"student": "bert:1x64", "max_length": 24, "batch_size": 16, "workers": 0, "device": "cpu"}
HERE = {"workers": 0, "device": "cpu"}
KEYS = {
    *("split", "rows", "accuracy", "teacher_accuracy", "agreement", "kl", "cosine", "neighbours", "linear"),
    *("teacher_neighbours", "teacher_linear", "parameters", "student", "teacher"),
}


@pytest.fixture(scope="module")
def run(text_cache, tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluated")
    cache = shutil.copytree(text_cache, folder / "cache")
    finish(fit_probe(cache=cache))
    finish(train_student(cache=cache, out=folder / "run", steps=150, objective="kl,ce,cosine", **FAST))
    return folder / "run"


def by_hand(run, split, rows=slice(None)):
    """Logits of the student and of the teacher, labels: one row at a time, from the plain source."""
    student, _ = load_student(run / "student")
    reader = open_cache(json.loads((run / "recipe.json").read_text())["cache"]).split(split)
    source = open_data("synthetic-text:160")[split]
    index = {key: at for at, key in enumerate(source.keys)}
    samples = [source[index[key]] for key in np.array(reader.keys)[rows]]
    network = student.backbone.input
    with torch.inference_mode():
        found = [student(network.collate([network.prepare(s.encoded.decode())]))["logits"][0] for s in samples]
    teacher = reader.read(np.arange(len(reader)))["logits"][rows]
    return torch.stack(found), teacher, np.array([sample.label for sample in samples])


def test_scores_on_the_test_split_are_those_counted_by_hand(run):
    scores = finish(evaluate_run(run=run, **HERE))
    assert set(scores) == KEYS and json.loads(json.dumps(scores)) == scores
    assert (scores["split"], scores["rows"]) == ("test", 40)
    student, teacher, labels = by_hand(run, "test")
    assert scores["accuracy"] == (student.argmax(1).numpy() == labels).mean()
    assert scores["teacher_accuracy"] == (teacher.argmax(1).numpy() == labels).mean()
    assert scores["agreement"] == pytest.approx((student.argmax(1) == teacher.argmax(1)).float().mean().item())
    p, q = teacher.double().softmax(1), student.double().softmax(1)
    assert scores["kl"] == pytest.approx((p * (p / q).log()).sum(1).mean().item(), rel=1e-3)
    assert scores["student"] == "bert:1x64" and scores["teacher"] == "random-text"
    assert scores["accuracy"] > 0.4 and scores["cosine"] > 0
    assert all(0 < scores[name] <= 1 for name in ("neighbours", "linear", "teacher_neighbours", "teacher_linear"))


def test_the_training_split_is_judged_on_its_validation_part(run):
    events = []
    evaluation = evaluate_run(run=run, split="train", **HERE)
    while True:
        try:
            events.append(next(evaluation))
        except StopIteration as stop:
            scores = stop.value
            break
    keys = open_cache(json.loads((run / "recipe.json").read_text())["cache"]).split("train").keys
    held_out = validation_rows(keys, 0.1)
    assert scores["rows"] == held_out.sum() and scores["split"] == "train"
    assert Message(f"{held_out.sum()} rows of train, its validation part") in events
    student, _, labels = by_hand(run, "train", np.flatnonzero(held_out))
    assert scores["accuracy"] == pytest.approx((student.argmax(1).numpy() == labels).mean())


def test_a_cache_without_a_test_split_is_judged_on_the_validation_part(tmp_path):
    cache = tmp_path / "cache"
    finish(extract_cache(teacher="random", data="synthetic-text:60", splits=["train"], out=cache, **HERE))
    finish(train_student(cache=cache, out=tmp_path / "run", steps=3, objective="ce", validation=0.2, **FAST))
    scores = finish(evaluate_run(run=tmp_path / "run", **HERE))
    held_out = validation_rows(open_cache(cache).split("train").keys, 0.2)
    assert (scores["split"], scores["rows"]) == ("train", held_out.sum())
    assert scores["accuracy"] is not None
    assert [scores[name] for name in ("teacher_accuracy", "agreement", "kl", "cosine")] == [None] * 4
    finish(train_student(cache=cache, out=tmp_path / "all", steps=3, objective="ce", validation=0.0, **FAST))
    with pytest.raises(UsageError, match="no validation part to judge on"):
        finish(evaluate_run(run=tmp_path / "all", **HERE))


def test_a_cache_that_moved_or_grew_is_judged_too(run, tmp_path):
    cache = json.loads((run / "recipe.json").read_text())["cache"]
    moved = shutil.copytree(cache, tmp_path / "moved")
    plain = finish(evaluate_run(run=run, **HERE))
    assert finish(evaluate_run(run=run, cache=moved, **HERE)) == plain
    finish(fit_probe(cache=moved, labels=40))
    assert open_cache(moved).split("test").outputs.keys() >= {"logits", "probe/logits"}
    assert finish(evaluate_run(run=run, cache=moved, **HERE)) == plain  # by what it learned from, not by the newest
    with pytest.raises(UsageError, match="there is no cache") as caught:
        finish(evaluate_run(run=run, cache=tmp_path / "nowhere", **HERE))
    assert "--cache" not in caught.value.hint


def test_rows_whose_labels_the_probe_saw_do_not_judge_it(tmp_path):
    """On labels without any meaning a fair teacher is at chance, whatever its probe was fitted on."""
    lines = [{"id": str(n), "text": f"{hash_unit('text', n):.12f}", "label": f"c{n % 3}"} for n in range(400)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    finish(extract_cache(teacher="random", data=str(tmp_path / "train.jsonl"), out=tmp_path / "cache", **HERE))
    finish(fit_probe(cache=tmp_path / "cache", labels=200))
    given = {"cache": tmp_path / "cache", "objective": "kl", "steps": 5, "validation": 0.3}
    finish(train_student(out=tmp_path / "run", **given, **FAST))
    reader = open_cache(tmp_path / "cache").split("train")
    held_out = validation_rows(reader.keys, 0.3)
    scores = finish(evaluate_run(run=tmp_path / "run", **HERE))
    assert scores["rows"] == (held_out & ~reader.labelled("logits")).sum() < held_out.sum()
    finish(fit_probe(cache=tmp_path / "cache"))  # all labels
    finish(train_student(out=tmp_path / "all", **given, **FAST))
    scores = finish(evaluate_run(run=tmp_path / "all", **HERE))
    assert scores["rows"] == held_out.sum() and scores["teacher_accuracy"] is None


def test_a_split_without_outputs_is_not_chosen_and_named_when_asked_for(run, tmp_path):
    cache = shutil.copytree(json.loads((run / "recipe.json").read_text())["cache"], tmp_path / "cache")
    listed = open_data("synthetic-text:160")["test"]
    list(list_rows(listed, LocalObjects(cache), "val"))
    seal(LocalObjects(cache))
    assert finish(evaluate_run(run=run, cache=cache, **HERE))["split"] == "test"
    with pytest.raises(IncompleteError, match="no teacher's outputs over split 'val'"):
        finish(evaluate_run(run=run, cache=cache, split="val", **HERE))
    assert not describe_progress(cache)["complete"]


def write_texts(path, source, name_of):
    lines = []
    for sample in source.iter(0, len(source)):
        record = {"id": sample.key, "text": sample.encoded.decode(), "label": name_of(sample)}
        lines.append(json.dumps({name: value for name, value in record.items() if value is not None}))
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def test_classes_that_are_counted_otherwise_are_refused(run, tmp_path):
    source = open_data("synthetic-text:160")["test"]
    data = write_texts(
        tmp_path / "test.jsonl", source, lambda sample: f"class-{sample.label}" if sample.label else None
    )
    with pytest.raises(UsageError, match="these classes are not those that the student learned") as caught:
        finish(evaluate_run(run=run, data=[f"test={data}"], **HERE))
    assert "train=A" in caught.value.hint


def test_without_labels_agreement_is_left(run, tmp_path):
    source = open_data("synthetic-text:160")
    data = [f"{name}={write_texts(tmp_path / f'{name}.jsonl', source[name], lambda _: None)}" for name in source]
    scores = finish(evaluate_run(run=run, data=data, **HERE))
    assert scores["accuracy"] is None and scores["neighbours"] is None and scores["linear"] is None
    assert scores["agreement"] == finish(evaluate_run(run=run, **HERE))["agreement"]


def test_few_labels_are_no_reason_to_fail(tmp_path):
    """Twenty labelled rows of which none falls into the part that stops the probe."""
    from pipelines.evaluate import _judge_features
    from pipelines.judged import Several
    from student.data import CachedData

    source = open_data("synthetic-text:400")["train"]
    chosen = np.flatnonzero(~validation_rows(list(source.keys), 0.15))[:30]
    data = CachedData(source, open_cache_input(), samples=chosen, labels=source.labels[chosen])
    scores = {}
    events = list(_judge_features(scores, None, {}, {}, data, data, 8, Several((), None, {})))
    assert events == [Message("too few labels to judge features by")] and scores["linear"] is None
    unlabelled = CachedData(source, open_cache_input(), samples=chosen, labels=np.full(30, NO_LABEL))
    assert list(_judge_features({}, None, {}, {}, unlabelled, data, 8, Several((), None, {}))) == events


def open_cache_input():
    from tests.small_caches import teacher

    return teacher().input


def test_what_is_no_finished_run_is_refused(run, tmp_path):
    with pytest.raises(UsageError, match="is not a run"):
        finish(evaluate_run(run=tmp_path, **HERE))
    begun = shutil.copytree(run, tmp_path / "begun", ignore=shutil.ignore_patterns("student", "summary.json"))
    with pytest.raises(UsageError, match="there is no trained student") as caught:
        finish(evaluate_run(run=begun, **HERE))
    assert "--resume" in caught.value.hint
