"""Targets of one cache and of several: the same rows from files and from a device, joined by key, averaged."""

import numpy as np
import pytest
import torch

from featurecache.errors import IdentityError, UnknownNameError, UsageError
from featurecache.types import OutputSpec
from student.data import CachedData
from student.given import (
    Given,
    check_same_samples,
    check_same_views,
    choose_teachers,
    elsewhere,
    ensemble_members,
    find_teachers,
    targets_of,
)
from student.join import join
from student.targets import FromCache, place, residency
from student.targets.ensemble import ensemble_logits
from student.views import Views
from tests.digesting import digests, students, taught
from tests.sample_inputs import Pictures
from tests.small_caches import Texts, sentences, teacher, teacher_says, write_cache
from tests.store.test_gather import assert_same

TEXTS = sentences(40)
CPU = torch.device("cpu")


def reordered(texts, seed=1):
    keys = list(texts)
    return {keys[at]: texts[keys[at]] for at in np.random.default_rng(seed).permutation(len(keys))}


@pytest.fixture(scope="module")
def readers(tmp_path_factory):
    """The same texts in two caches, the second in another order and without two of them."""
    fewer = {key: text for key, text in reordered(TEXTS).items() if key not in ("key-004", "key-030")}
    folder = tmp_path_factory.mktemp("two")
    first = write_cache(folder / "a", Texts(TEXTS))
    second = write_cache(folder / "b", Texts(fewer), encode={"embedding": "float16"})
    return first.split("train"), second.split("train")


def data_of(reader, *, given=None, outputs=("embedding", "logits"), **options):
    source = Texts(TEXTS)
    given = given or [Given("", reader, {name: name for name in reader.outputs})]
    joined = join(reader, source, ("embedding",), missing="skip", others=elsewhere(given, outputs))
    fields = {"samples": joined.samples, "labels": joined.labels, "rows": joined.rows, "reader": reader}
    targets = targets_of(given, outputs)
    return CachedData(source, teacher().input, outputs=("embedding",), targets=targets, **fields, **options)


def batches_of(data):
    return list(data.shuffled(8, seed=3, start=0, stop=9))


@pytest.mark.parametrize("encode", [{}, {"embedding": "int8:row", "logits": "topk:2"}, {"embedding": "float16"}])
def test_held_batches_are_those_that_are_streamed(tmp_path, encode):
    reader = write_cache(tmp_path, Texts(TEXTS), encode=encode).split("train")
    streamed = batches_of(data_of(reader, residency="stream", bank_rows=5))
    held = batches_of(data_of(reader, residency="device", bank_rows=5))
    for one, two in zip(streamed, held, strict=True):
        assert torch.equal(one.rows, two.rows) and torch.equal(one.inputs["ids"], two.inputs["ids"])
        assert_same(one.targets, two.targets)
        assert_same(one.bank, two.bank)
        assert_same(one.targets, reader.read(one.rows.numpy()))


def test_held_views_and_what_they_were_made_of(tmp_path):
    source = Pictures.of_all_shapes(12)
    cache = taught(tmp_path / "cache", source, views=4, augmentation=find("none"))
    data = students(cache, source, views=Views(4, 2), residency="device")
    for batch in data.shuffled(8, seed=7, start=0, stop=6):
        assert batch.targets["embedding"].equal(digests(batch.inputs))


def find(name):
    from featurecache.augment import find_augmentation

    return find_augmentation(name)


def test_where_targets_are_is_chosen_by_what_fits_and_said(readers, monkeypatch):
    targets = FromCache(readers[0], {"embedding": "embedding"})
    rows = np.arange(20)
    held, told = place(targets, rows, total=40, views=1, device=CPU, how="device")
    assert told == "480 bytes of targets are held on cpu" and held.stored_bytes == 0
    for how in ("auto", "stream"):
        assert place(targets, rows, total=40, views=1, device=CPU, how=how) == (targets, "")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 10**9))
    gpu = torch.device("cuda:0")
    assert residency.fits(500, gpu) and not residency.fits(501, gpu) and not residency.fits(1, CPU)
    assert place(targets, rows, total=40, views=2, device=gpu, how="auto") == (
        targets,
        "targets are read from the cache as they are needed, 960 bytes in all",
    )


def test_rows_held_leave_the_shuffle_to_the_whole(readers, monkeypatch):
    monkeypatch.setattr("student.data.available_memory", lambda: 10)
    assert data_of(readers[0]).shuffle == "blocks"
    assert data_of(readers[0], residency="device").shuffle == "global"


def test_two_caches_meet_by_key(readers):
    first, _ = readers
    given = choose_teachers(find_teachers(readers), None)
    assert [one.teacher for one in given] == ["random-text", "random-text-2"]
    names = ("random-text/embedding", "random-text-2/embedding", "random-text-2/logits")
    check_same_samples(given, names)
    for how in ("stream", "device"):
        data = data_of(first, given=given, outputs=names, residency=how, bank_rows=4)
        assert len(data) == 38
        for batch in batches_of(data):
            assert list(batch.targets) == list(names)
            for at, key in enumerate(data.keys_of(batch.rows)):
                says = teacher_says(TEXTS[key])
                torch.testing.assert_close(batch.targets[names[0]][at], says["embedding"], rtol=1e-5, atol=1e-6)
                torch.testing.assert_close(batch.targets[names[1]][at], says["embedding"], rtol=2e-3, atol=1e-4)
                torch.testing.assert_close(batch.targets[names[2]][at], says["logits"], rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(batch.bank[names[0]], batch.bank[names[1]], rtol=2e-3, atol=1e-4)


def test_rows_that_another_cache_lacks_are_missing(readers):
    given = find_teachers(readers)
    others = elsewhere(given, ["random-text-2/embedding"])
    with pytest.raises(UsageError, match="2 of 40 samples are not in the cache, such as 'key-") as refused:
        join(readers[0], Texts(TEXTS), ("embedding",), others=others)
    assert "--missing skip" in refused.value.hint
    joined = join(readers[0], Texts(TEXTS), ("embedding",), others=others, missing="skip")
    assert joined.missing == 2 and len(joined.rows) == 38
    assert not {"key-004", "key-030"} & {readers[0].keys[row] for row in joined.rows}


def test_rows_without_outputs_in_another_cache_are_left_out(tmp_path, monkeypatch):
    texts = {**TEXTS, "key-007": " "}
    readers = [write_cache(tmp_path / name, Texts(texts)).split("train") for name in "ab"]
    valid = type(readers[0]).valid
    monkeypatch.setattr(  # the first teacher had an answer
        type(readers[0]),
        "valid",
        lambda self, outputs=None, *, view=0: valid(self, outputs, view=view) | (self is readers[0]),
    )
    others = elsewhere(find_teachers(readers), ["random-text-2/logits"])
    joined = join(readers[0], Texts(texts), ("embedding",), others=others, max_invalid=0.1)
    assert joined.invalid == 1 and "key-007" not in {readers[0].keys[row] for row in joined.rows}


def test_other_samples_under_the_same_keys_are_refused(tmp_path, readers):
    other = write_cache(tmp_path, Texts({**TEXTS, "key-011": "something else"})).split("train")
    given = find_teachers([readers[0], other])
    with pytest.raises(IdentityError, match="other bytes of 1 samples of the same key, such as 'key-011'"):
        check_same_samples(given, ["random-text/embedding", "random-text-2/embedding"])


def test_other_pixels_of_the_same_bytes_are_refused(tmp_path, monkeypatch):
    source = Pictures.of_all_shapes(6)
    readers = [taught(tmp_path / name, source, None, views=1).split() for name in "ab"]
    given = find_teachers(readers)
    names = [one.known_as("embedding") for one in given]
    check_same_samples(given, names)
    hashes = readers[1].input_hashes("embedding")
    monkeypatch.setattr(readers[1], "input_hashes", lambda output: hashes + (np.arange(6) == 4).astype(np.uint64))
    with pytest.raises(IdentityError, match="other pixels of 1 samples of the same key, such as 'picture-4'"):
        check_same_samples(given, names)


@pytest.mark.parametrize(
    ("first", "second", "order", "same"),
    [
        (("none", 3), ("none", 3), slice(None), True),
        (("none", 3), ("none", 3), slice(None, None, -1), True),
        (("none", 3), ("none", 4), slice(None), False),
        (("none", 3), ("none+mix", 3), slice(None), False),
        (("none+mix", 3), ("none+mix", 3), slice(None), True),
        (("none+mix", 3), ("none+mix", 3), slice(None, None, -1), False),
    ],
)
def test_views_are_the_same_or_refused(tmp_path, first, second, order, same):
    """Batches of both caches, where they are let through, are of what the student is shown."""
    source, other = Pictures.of_all_shapes(6), Pictures.of_all_shapes(6)
    other.keys, other.contents, other.labels = other.keys[order], other.contents[order], other.labels[order]
    caches = [
        taught(tmp_path / name, images, find(augmentation), views=3, seed=seed)
        for name, images, (augmentation, seed) in (("a", source, first), ("b", other, second))
    ]
    given = find_teachers([cache.split() for cache in caches])
    if not same:
        with pytest.raises(IdentityError, match="are not those of the first cache") as refused:
            check_same_views(given)
        assert "--views 1" in refused.value.hint
        return
    check_same_views(given)
    names = [one.known_as("embedding") for one in given]
    data = students(caches[0], source, views=Views(3, 1), targets=targets_of(given, names))
    for batch in data.shuffled(4, seed=7, start=0, stop=6):
        assert all(batch.targets[name].equal(digests(batch.inputs)) for name in names)


def test_views_that_a_cache_does_not_tell_are_refused(tmp_path):
    source = Pictures.of_all_shapes(6)
    some, none = taught(tmp_path / "a", source, find("none"), views=2), taught(tmp_path / "b", source, None, views=1)
    readers = [some.split(), none.split()]
    with pytest.raises(IdentityError, match="are not those of the first cache"):
        check_same_views(find_teachers(readers))


def test_teachers_are_chosen_by_name(readers):
    found = find_teachers(readers)
    assert [one.teacher for one in choose_teachers(found, ["all"])] == ["random-text", "random-text-2"]
    (alone,) = choose_teachers(found, ["random-text"])
    assert alone.teacher == "" and alone.outputs == {"embedding": "embedding", "logits": "logits"}
    with pytest.raises(UnknownNameError, match="no teacher of these caches is called 'random-txt'"):
        choose_teachers(found, ["random-txt"])
    with pytest.raises(UsageError, match="has none of the teachers"):
        choose_teachers(found, ["random-text-2"])


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_an_ensemble_is_the_mean_of_what_it_says(temperature):
    draw = np.random.default_rng(0)
    members = [draw.normal(size=(5, 7)) * 6 for _ in range(3)]
    tensors = [torch.from_numpy(member) for member in members]

    def softmax(logits):
        weights = np.exp(logits / temperature)
        return weights / weights.sum(1, keepdims=True)

    logits = ensemble_logits(tensors, "probabilities", temperature).numpy()
    np.testing.assert_allclose(softmax(logits), sum(map(softmax, members)) / 3, rtol=1e-12)
    np.testing.assert_allclose(ensemble_logits(tensors, "logits", temperature), sum(members) / 3, rtol=1e-12)


def test_members_of_an_ensemble_are_dense_and_of_the_same_classes(tmp_path, readers, monkeypatch):
    given = find_teachers(readers)
    names = ["random-text/logits", "random-text-2/logits"]
    assert ensemble_members(given) == names
    targets = targets_of(given, ["logits"], members=names, how="logits")
    rows = np.array([0, 5])
    found, first = targets.read(rows, outputs=["logits"]), readers[0].read(rows)["logits"]
    assert list(found) == ["logits"]
    torch.testing.assert_close(found["logits"], first, rtol=1e-5, atol=1e-6)
    with pytest.raises(UsageError, match="needs the logits of two teachers"):
        ensemble_members(given[:1])
    sparse = write_cache(tmp_path, Texts(TEXTS), encode={"logits": "topk:2"}).split("train")
    with pytest.raises(UsageError, match="random-text-2/logits are sparse"):
        ensemble_members(find_teachers([readers[0], sparse]))
    named = {**readers[1].outputs, "logits": OutputSpec("logits", (5,), tuple("abcde"))}
    monkeypatch.setattr(type(readers[1]), "outputs", property(lambda self: named if self is readers[1] else own(self)))
    with pytest.raises(UsageError, match="are of other classes"):
        ensemble_members(given)


def own(reader):
    return {name: output.spec for name, output in reader._outputs.items()}
