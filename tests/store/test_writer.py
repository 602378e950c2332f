import threading
from dataclasses import replace

import numpy as np
import pytest

from featurecache.errors import CorruptCacheError, IdentityError, UsageError
from featurecache.store.commit import CommitRecord
from featurecache.store.layout import PartSpec
from featurecache.store.objects import LocalObjects
from featurecache.store.part_reader import PartReader
from featurecache.store.reader import open_cache
from featurecache.store.writer import CacheWriter, create_cache, matching_part
from featurecache.types import Reason
from tests.store.small_parts import rows_identity, teacher_part, values_of, write_part, write_rows


def files_of(objects):
    return {str(p.relative_to(objects.root)): p.read_bytes() for p in objects.root.rglob("*") if p.is_file()}


def test_creating_twice_opens_what_stands_there(tmp_path):
    first = create_cache(tmp_path / "c", source={"data": "x"})
    before = files_of(first)
    second = create_cache(tmp_path / "c", source={"data": "y"})
    assert files_of(second) == before and open_cache(tmp_path / "c").source == {"data": "x"}


@pytest.mark.parametrize("left", ["cache.json", "zarr.json", None])
def test_a_creation_that_was_killed_is_finished(tmp_path, left):
    objects = create_cache(tmp_path / "c", source={})
    if left != "cache.json":
        (objects.root / "cache.json").unlink()
    (objects.root / "zarr.json").unlink()
    create_cache(tmp_path / "c", source={})
    assert {"cache.json", "zarr.json"} <= set(files_of(objects))


def test_a_directory_with_something_else(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UsageError, match=r"is not a cache and not empty \(it has thesis.tex\)"):
        create_cache(tmp_path, source={})
    with pytest.raises(UsageError, match="is a file"):
        create_cache(tmp_path / "thesis.tex", source={})


def test_the_same_part_again_writes_only_what_is_missing(objects):
    part = teacher_part(2500, views=(0, 2))
    write_part(objects, part, skip={(0, 1), (1, 0)})
    before = files_of(objects)
    writer = CacheWriter(objects, replace(part, provenance={"created": "later"}))
    assert not writer.is_complete()
    assert [(s.view, s.index) for s in writer.pending()] == [(0, 1), (1, 0)]
    for shard in writer.pending():
        writer.write(shard, values_of(part, shard))
    assert writer.is_complete() and list(writer.pending()) == []
    assert files_of(objects).items() >= before.items()


def test_another_recipe_is_refused_field_by_field(objects):
    write_part(objects, teacher_part())
    before = files_of(objects)
    other = replace(
        teacher_part(),
        identity={"kind": "teacher", "data": {**rows_identity(10), "rows": 11}, "precision": "bfloat16", "new": (1, 2)},
    )
    for refused in (
        lambda: CacheWriter(objects, other),
        lambda: matching_part(objects, "train", "teacher", other.identity),
    ):
        with pytest.raises(IdentityError) as error:
            refused()
        assert error.value.fields == [
            ("data.rows", 10, 11),
            ("new", None, [1, 2]),
            ("precision", "float32", "bfloat16"),
            ("recipe", "one", None),
        ]
        assert "precision: it has 'float32', this run has 'bfloat16'" in str(error.value)
    assert files_of(objects) == before


def test_matching_part(objects):
    assert matching_part(objects, "train", "teacher", {}) is None
    write_rows(objects)
    assert matching_part(objects, "train", "teacher", {}) is None
    part = replace(teacher_part(), identity={**teacher_part().identity, "pair": (1, 2)})
    CacheWriter(objects, part)
    found = matching_part(objects, "train", "teacher", part.identity)
    assert found is not None and found.identity["pair"] == [1, 2] and found.recipe_id == part.recipe_id


def test_an_absent_field_differs_from_null(objects):
    CacheWriter(objects, teacher_part())
    with pytest.raises(IdentityError) as error:
        matching_part(objects, "train", "teacher", {**teacher_part().identity, "extra": None})
    assert error.value.fields == [("extra", None, None)]


def test_what_another_recipe_left_before_its_part_json(objects):
    CacheWriter(objects, teacher_part(dim=8))
    (objects.root / "train/vit/part.json").unlink()
    with pytest.raises(IdentityError, match="embedding/zarr.json stands there with another content"):
        CacheWriter(objects, teacher_part(dim=4))
    assert not (objects.root / "train/vit/part.json").exists()
    CacheWriter(objects, teacher_part(dim=8))  # the one that was cut off goes on


def test_two_writers_with_one_recipe_both_end_well(objects):
    part = teacher_part(9000, views=(0, 2))
    start, failed = threading.Barrier(2), []

    def run():
        try:
            writer = CacheWriter(objects, part)
            start.wait()
            for shard in writer.pending():
                writer.write(shard, values_of(part, shard))
            assert writer.is_complete()
        except Exception as error:  # noqa: BLE001 - a thread's failure is told to the test
            failed.append(error)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == [] and list((objects.root / "_tmp").iterdir()) == []
    reader = PartReader(objects, part)
    for shard in part.shards():
        found = reader.take(part.arrays[0], np.arange(shard.start, shard.stop), view=shard.view)
        assert np.array_equal(found, values_of(part, shard)["embedding"])


def test_interleaved_writers_with_different_bits_agree_on_one(objects):
    part = teacher_part()
    (shard,) = part.shards()
    first, second = CacheWriter(objects, part).open(shard), CacheWriter(objects, part).open(shard)
    first.append(values_of(part, shard, seed=1))
    second.append(values_of(part, shard, seed=2))
    second._files["embedding"].finish()  # killed here: its embedding stands, and nothing else
    record = first.commit()
    second.discard()
    found = PartReader(objects, part)
    assert found.records == {(0, 0): record}
    assert np.array_equal(found.whole("embedding"), values_of(part, shard, seed=2)["embedding"])
    assert list((objects.root / "_tmp").iterdir()) == []


def test_a_record_counts_the_invalid_rows_that_stand(objects):
    part = teacher_part()
    (shard,) = part.shards()
    rows = values_of(part, shard)
    bad = {**rows, "valid": rows["valid"] * np.uint8(0), "reason": np.full(10, Reason.NOT_FINITE, np.uint8)}
    killed, writer = (CacheWriter(objects, part).open(shard) for _ in range(2))
    killed.append(bad)
    writer.append(rows)
    for file in killed._files.values():
        file.finish()  # and killed here, before the record
    assert writer.commit().invalid == {"NOT_FINITE": 10}


def test_a_cache_that_another_run_creates_meanwhile(tmp_path, monkeypatch):
    real = LocalObjects.exists

    def exists(self, key):
        found = real(self, key)
        if not found and key == "cache.json":
            with monkeypatch.context() as patch:
                patch.setattr(LocalObjects, "exists", real)
                create_cache(tmp_path / "c", source={"data": "theirs"})
        return found

    monkeypatch.setattr(LocalObjects, "exists", exists)
    create_cache(tmp_path / "c", source={"data": "ours"})
    assert open_cache(tmp_path / "c").source == {"data": "theirs"}


@pytest.mark.parametrize("change", ["missing", "extra", "uneven", "few", "many"])
def test_rows_that_do_not_make_the_shard(objects, change):
    part = teacher_part()
    writer = CacheWriter(objects, part)
    (shard,) = writer.pending()
    rows = values_of(part, shard)
    if change == "missing":
        del rows["valid"]
    if change == "extra":
        rows["more"] = rows["valid"]
    if change == "uneven":
        rows["valid"] = rows["valid"][:9]
    if change == "few":
        rows = {name: values[:9] for name, values in rows.items()}
    if change == "many":
        rows = {name: np.concatenate([values, values[:1]]) for name, values in rows.items()}
    with pytest.raises(UsageError):
        writer.write(shard, rows)
    assert not objects.exists(CommitRecord.key(part, shard))
    assert list((objects.root / "_tmp").iterdir()) == []


def test_a_shard_whose_files_cannot_all_be_opened(objects, monkeypatch):
    part = teacher_part()
    writer = CacheWriter(objects, part)
    real, opened = type(objects).temporary, []

    def temporary(self):
        if len(opened) == 2:
            raise OSError("too many open files")
        opened.append(1)
        return real(self)

    monkeypatch.setattr(type(objects), "temporary", temporary)
    with pytest.raises(OSError, match="too many"):
        writer.open(part.shards()[0])
    assert list((objects.root / "_tmp").iterdir()) == []


def test_names_of_very_many_classes(objects):
    part = teacher_part()
    big = {name: getattr(part, name) for name in ("name", "kind", "split", "rows", "identity", "arrays")}
    facts = {"teacher": "t", "teacher_id": "i", "input": {}, "classes": [f"class {n}" for n in range(200_000)]}
    writer = CacheWriter(objects, PartSpec(**big, facts=facts))
    assert writer.part.facts == facts
    facts["classes"] *= 10
    with pytest.raises(UsageError, match="part.json of train/too-big would have"):
        CacheWriter(objects, PartSpec(**{**big, "name": "too-big"}, facts=facts))
    assert not (objects.root / "train/too-big").exists()


def test_a_part_json_of_another_place(objects):
    CacheWriter(objects, teacher_part())
    (objects.root / "train/vit").rename(objects.root / "train/vit-2")
    with pytest.raises(CorruptCacheError, match="train/vit-2/part.json is the part.json of train/vit"):
        CacheWriter(objects, teacher_part(name="vit-2"))
