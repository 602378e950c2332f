"""Adding to a sealed cache: what stands is never touched, and the sum is what one extraction would have given."""

import hashlib
import shutil

import numpy as np
import pytest

from featurecache.errors import FeatureCacheError, IdentityError, IncompleteError, TeacherError, UsageError
from featurecache.store.objects import LocalObjects
from featurecache.store.reader import open_cache
from featurecache.store.verify import Finding, verify
from featurecache.teachers import resolve
from featurecache.teachers.random_projection import RandomProjection
from pipelines import extract_cache, finish, train_student
from pipelines.evaluate import evaluate_run
from pipelines.events import Advance, Message
from pipelines.extend import extend_cache
from tests.pipelines.altered import image_folder, with_another_pixel

HERE = {"workers": 0, "device": "cpu"}
FIRST = {"teacher": "random", "data": "synthetic:24", "model_kwargs": {"dim": 8, "classes": 4}, **HERE}
FIRST |= {"encode": {"embedding": "float32", "logits": "float32"}}
SECOND = {"teacher": "random", "model_kwargs": {"dim": 5, "classes": 3, "seed": 9}}
FLOATS = {"encode": {"embedding": "float32", "logits": "float32"}}
VIEWS = {"augment": "flip-crop+mix", "seed": 5}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Embeddings and logits of 24 images in the plain view and two random ones; 6 to test on."""
    path = tmp_path_factory.mktemp("small") / "cache"
    finish(extract_cache(out=path, views=3, **VIEWS, **FIRST))
    return path


@pytest.fixture(scope="module")
def larger(tmp_path_factory):
    """The same in five views at once."""
    path = tmp_path_factory.mktemp("larger") / "cache"
    finish(extract_cache(out=path, views=5, **VIEWS, **FIRST))
    return path


@pytest.fixture
def cache(small, tmp_path):
    return shutil.copytree(small, tmp_path / "cache")


def state(path):
    """Content and time of every file."""
    files = [file for file in path.rglob("*") if file.is_file()]
    return {file: (hashlib.sha256(file.read_bytes()).hexdigest(), file.stat().st_mtime_ns) for file in files}


def extended(path, **wish):
    """Extend a cache, and check that every file that stood there stands there still, and that all of it is whole."""
    before, seal = state(path), open_cache(path).seal
    result = finish(extend_cache(cache=path, **HERE, **wish))
    after = state(path)
    assert {file: after.get(file) for file in before} == before
    assert not [found for found in verify(LocalObjects(path)) if isinstance(found, Finding)]
    newest = open_cache(path).seal
    assert newest.digest == result["digest"]
    assert newest.digest == seal.digest or newest.previous == seal.digest
    assert set(result["added"]) == set(newest.parts) - set(seal.parts)
    return result


def all_of(path, split="train", view_count=None, outputs=("embedding", "logits")):
    reader = open_cache(path).split(split)
    views = range(view_count or reader.views())
    found = [reader.read(np.arange(len(reader)), view=view, outputs=list(outputs)) for view in views]
    return {name: np.stack([rows[name].numpy() for rows in found]) for name in outputs}


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name, values in one.items():
        np.testing.assert_allclose(values, other[name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("views", [["+2"], ["5"], ["+1", "+1"], ["4", "5"]])
def test_views_that_are_added_are_those_that_would_have_been_made_at_once(cache, larger, views):
    for wish in views:
        result = extended(cache, views=wish)
    assert open_cache(cache).split().views() == 5
    assert_same(all_of(cache), all_of(larger))
    assert open_cache(cache).split("test").views() == 1
    assert all(prefix.startswith("train/") for prefix in result["added"])
    every = np.repeat(np.arange(24), 4), np.tile(np.arange(1, 5), 24)
    here, there = (open_cache(path).split().stored_views.parameters(*every) for path in (cache, larger))
    assert here.tobytes() == there.tobytes()
    rows, mixed = np.arange(24).repeat(5), np.tile(np.arange(5), 24)
    joined = open_cache(cache).split().read(rows, view=mixed)["logits"].numpy()
    assert joined.tobytes() == all_of(cache)["logits"].swapaxes(0, 1).reshape(joined.shape).tobytes()


def test_views_that_are_there_are_not_made_again(cache):
    for wish in ("3", "2", "1"):
        before = state(cache)
        events = list(extend_cache(cache=cache, views=wish, **HERE))
        assert Message("all of that was there already: nothing was added") in events
        assert state(cache) == before


def test_a_cache_of_the_plain_view_gets_random_ones(tmp_path, small):
    finish(extract_cache(out=tmp_path / "plain", **FIRST))
    extended(tmp_path / "plain", views="3", **VIEWS)
    assert_same(all_of(tmp_path / "plain"), all_of(small))


def test_an_interrupted_extension_goes_on_and_makes_nothing_twice(cache, larger):
    digest = open_cache(cache).seal.digest
    wish = {"cache": cache, "views": "+2", "batch_size": 4, **HERE}
    for stop_after in ("draw views train", "extract train"):
        run = extend_cache(**wish)
        next(event for event in run if isinstance(event, Advance) and event.stage == stop_after and event.done)
        run.close()
        assert open_cache(cache).seal.digest == digest
        assert open_cache(cache).split().views() == 3
    with pytest.raises(UsageError, match="interrupted run has begun to draw 5 views of train") as refused:
        finish(extend_cache(cache=cache, views="+3", **HERE))
    assert "--views 5" in refused.value.hint
    before = {file: facts for file, facts in state(cache).items() if "claims" not in str(file)}
    finish(extend_cache(**wish))
    assert_same(all_of(cache), all_of(larger))
    after = state(cache)
    assert {file: after.get(file) for file in before} == before
    assert len(open_cache(cache).parts("train")) == 5


def test_outputs_of_the_same_teacher(tmp_path, small):
    first = {**FIRST, "encode": {"embedding": "float32"}}
    path = tmp_path / "cache"
    finish(extract_cache(out=path, views=3, **VIEWS, **{**first, "outputs": ["embedding"]}))
    named = {"teacher": "random", "model_kwargs": FIRST["model_kwargs"]}
    result = extended(path, outputs=["logits"], encode={"logits": "float32"}, **named)
    assert result["added"] == ["test/random-image-2", "train/random-image-2"]
    assert_same(all_of(path), all_of(small))
    extended(path, views="+1", **named)
    assert open_cache(path).split().views() == 4
    assert all_of(path)["logits"].shape == (4, 24, 4)


@pytest.fixture(scope="module")
def both(small, tmp_path_factory):
    """With a second teacher, which has to be named: its seed stands nowhere."""
    path = shutil.copytree(small, tmp_path_factory.mktemp("both") / "cache")
    extended(path, **SECOND, **FLOATS)
    return path


class TestSecondTeacher:
    def test_plain_names_stay_with_the_first(self, both, small):
        reader = open_cache(both).split()
        assert {name: spec.shape for name, spec in reader.outputs.items()} == {
            "embedding": (8,),
            "logits": (4,),
            "random-image-2/embedding": (5,),
            "random-image-2/logits": (3,),
        }
        assert reader.views() == 3
        assert_same(all_of(both), all_of(small))

    def test_it_saw_what_it_would_have_seen_alone(self, both, tmp_path):
        options = {**FIRST, **SECOND}
        finish(extract_cache(out=tmp_path / "alone", views=3, **VIEWS, **options))
        second = all_of(both, outputs=("random-image-2/embedding",))["random-image-2/embedding"]
        np.testing.assert_allclose(second, all_of(tmp_path / "alone")["embedding"], rtol=1e-6)

    def test_more_views_for_one_of_them_and_then_for_the_other(self, both, tmp_path):
        path = shutil.copytree(both, tmp_path / "cache")
        extended(path, views="+1", **SECOND)
        reader = open_cache(path).split()
        assert (reader.views(["embedding"]), reader.views(["random-image-2/embedding"])) == (3, 4)
        with pytest.raises(IdentityError, match="another teacher"):  # the second one cannot be found by itself
            finish(extend_cache(cache=path, views="4", **HERE))
        extended(path, views="4", teacher="random", model_kwargs=FIRST["model_kwargs"])
        assert open_cache(path).split().views() == 4

    def test_a_split_that_it_lacks(self, small, tmp_path):
        path = shutil.copytree(small, tmp_path / "cache")
        assert extended(path, splits=["train"], **SECOND)["added"] == ["train/random-image-2"]
        assert extended(path, **SECOND)["added"] == ["test/random-image-2"]


def test_a_split_that_is_not_there(cache, tmp_path):
    data = [f"val={image_folder(tmp_path / 'val', 8)}"]
    result = extended(cache, splits=["val"], data=data)
    assert result["added"] == ["val/random-image", "val/rows"]
    assert open_cache(cache).split("val").views() == 1
    finish(extract_cache(out=tmp_path / "other", **{**FIRST, "data": data}))
    assert_same(all_of(cache, "val"), all_of(tmp_path / "other", "val"))
    with pytest.raises(UsageError, match="other is a new split") as refused:
        finish(extend_cache(cache=cache, splits=["other"], data=[f"other={tmp_path / 'val'}"], views="+2", **HERE))
    assert "--views" in refused.value.hint


def test_inputs_are_stored(cache):
    assert extended(cache, store_inputs=20)["added"] == ["test/inputs", "train/inputs"]
    assert open_cache(cache).split().stored_inputs().size == 20
    assert not extended(cache, store_inputs=20)["added"]
    assert "train/inputs-2" in extended(cache, store_inputs=28)["added"]


def test_a_student_that_was_trained_before_is_judged_as_it_was(cache, tmp_path):
    training = {"student": "test_resnet", "steps": 1, "batch_size": 8, "objective": "kl", **HERE}
    finish(train_student(cache=cache, out=tmp_path / "run", **training))
    before = finish(evaluate_run(run=tmp_path / "run", **HERE))
    extended(cache, views="+1")
    extended(cache, **SECOND)
    extended(cache, store_inputs=64)
    after = finish(evaluate_run(run=tmp_path / "run", data=["synthetic:24"], **HERE))
    assert after == before


@pytest.mark.parametrize(
    ("wish", "error", "words"),
    [
        ({}, UsageError, "nothing to add was named"),
        ({"views": "+2", "augment": "strong"}, IdentityError, "drawn otherwise"),
        ({"views": "+2", "seed": 6}, IdentityError, "drawn otherwise"),
        ({"views": "many"}, UsageError, "no number of views"),
        ({"views": "0"}, UsageError, "no number of views"),
        ({"views": "+2", "data": ["synthetic:25"]}, IdentityError, "fingerprint"),
        ({"splits": ["more"]}, FeatureCacheError, "--data more="),
        ({"splits": ["more"], "data": ["train=synthetic:8"]}, FeatureCacheError, "no split 'more'"),
        ({"teacher": "hf:sentence-transformers/nothing"}, TeacherError, "nothing"),
        ({"outputs": ["tokens"]}, FeatureCacheError, "tokens"),
        ({"model_kwargs": {"dim": 3}, "views": "+1"}, UsageError, "without --teacher"),
        ({"augment": "flip-crop", "views": "4"}, IdentityError, "drawn otherwise"),
    ],
)
def test_what_is_refused_leaves_the_cache_as_it_was(small, wish, error, words):
    before = state(small)
    with pytest.raises(error) as refused:
        finish(extend_cache(cache=small, **HERE, **wish))
    assert words in f"{refused.value} {refused.value.hint} {getattr(refused.value, 'fields', '')}"
    assert refused.value.hint
    assert state(small) == before


@pytest.mark.parametrize("wish", [{"augment": "strong"}, {"seed": 4}])
def test_an_augmentation_without_random_views_is_refused(image_cache, wish):
    with pytest.raises(UsageError, match="make no difference"):
        finish(extend_cache(cache=image_cache, **HERE, store_inputs=16, **wish))


def test_a_split_without_random_views_gets_those_of_another(tmp_path):
    """Augmentation and seed of train; and --augment may be named where there is a test split."""
    data = ["train=synthetic:6", "test=synthetic:4"]
    finish(extract_cache(out=tmp_path, teacher="random", data=data, views=3, augment="flip-crop", seed=5, **HERE))
    finish(extend_cache(cache=tmp_path, views="+1", augment="flip-crop", **HERE))
    finish(extend_cache(cache=tmp_path, views="+2", splits=["test"], **HERE))
    found = {split: open_cache(tmp_path).split(split) for split in ("train", "test")}
    assert [reader.views() for reader in found.values()] == [4, 3]
    drawn = [part for part in open_cache(tmp_path).parts("test") if part.kind == "views"]
    assert [(part.facts["augmentation"]["name"], part.facts["seed"]) for part in drawn] == [("flip-crop", 5)]


def test_a_split_that_was_added_is_found_where_it_came_from(tmp_path):
    folder = image_folder(tmp_path / "images")
    finish(extract_cache(out=tmp_path / "cache", teacher="random", data=["train=synthetic:6"], **HERE))
    finish(extend_cache(cache=tmp_path / "cache", splits=["extra"], data=[f"extra={folder}"], **HERE))
    summary = finish(extend_cache(cache=tmp_path / "cache", store_inputs=8, **HERE))
    assert summary["added"] == ["extra/inputs", "train/inputs"]


def test_a_new_teacher_gets_the_views_there_are(small):
    with pytest.raises(UsageError, match="would have views of train that the others have not"):
        finish(extend_cache(cache=small, teacher="random", model_kwargs={"dim": 5}, views="+1", **HERE))


def test_a_split_that_is_there_and_nothing_to_add(small):
    with pytest.raises(UsageError, match="the cache has train already"):
        finish(extend_cache(cache=small, splits=["train"], **HERE))


def test_a_teacher_of_the_other_kind_of_samples_is_refused(small, monkeypatch):
    monkeypatch.setattr(resolve, "_load", lambda *_: RandomProjection("text"))
    with pytest.raises(UsageError, match="takes texts, and the data are images"):
        finish(extend_cache(cache=small, teacher="random", **HERE))


def test_data_of_the_same_size_with_another_pixel_are_refused(tmp_path, small):
    folder = image_folder(tmp_path / "images")
    finish(extract_cache(out=tmp_path / "cache", teacher="random", data=[f"train={folder}"], **HERE))
    with_another_pixel(folder)
    with pytest.raises(IdentityError, match="changed"):
        finish(extend_cache(cache=tmp_path / "cache", views="2", **HERE))


def test_a_cache_that_is_not_sealed_is_refused(tmp_path):
    run = extract_cache(out=tmp_path / "cache", **FIRST)
    next(event for event in run if isinstance(event, Advance))
    run.close()
    with pytest.raises(IncompleteError, match="not sealed"):
        finish(extend_cache(cache=tmp_path / "cache", views="+2", **HERE))
