"""Reading a cache: rows by number, keys, labels, validity; nothing that was not committed."""

import os

import numpy as np
import pytest
import zarr

from featurecache.errors import CorruptCacheError, IncompleteError, UnknownNameError, UsageError
from featurecache.fingerprint import content_hash
from featurecache.store.part_reader import PartReader
from featurecache.store.parts import find_parts
from featurecache.store.reader import open_cache
from featurecache.store.seals import seal
from featurecache.store.writer import CacheWriter
from tests.store.small_parts import keys_of, teacher_part, values_of, write_part, write_rows


def test_what_is_not_committed_is_never_zeros(objects):
    write_rows(objects, rows=2500)
    part = teacher_part(2500, views=(0, 2))
    model = write_part(objects, part, skip={(0, 1), (1, 2)})
    for trust in (False, True):
        reader = open_cache(objects.root).split("train", trust=trust)
        assert np.array_equal(reader.read([0, 2499])["embedding"], model["embedding"][0, [0, 2499]])
        for rows, view, message in (
            ([1023, 1024], 0, "rows 1,024 to 2,047 of train/vit/embedding are not committed"),
            ([2048], 1, "rows 2,048 to 2,499 of train/vit/embedding"),
            ([2499], 1, "rows 2,048 to 2,499 of train/vit/embedding"),
        ):
            with pytest.raises(IncompleteError, match=message):
                reader.read(rows, view=view)
        with pytest.raises(IncompleteError):
            reader.valid()


@pytest.mark.parametrize("rows", [[-1], [10], [0, 2**40], [-(2**62)]])
def test_rows_out_of_range(objects, rows):
    write_rows(objects)
    write_part(objects, teacher_part())
    with pytest.raises(UsageError, match="has rows 0 to 9, not all that were asked for"):
        open_cache(objects.root).split().read(rows)


def test_rows_that_are_no_numbers(objects):
    write_rows(objects)
    write_part(objects, teacher_part())
    reader = open_cache(objects.root).split()
    for rows in (np.ones(10, bool), np.ones(2)):
        with pytest.raises(UsageError, match="rows are chosen by number"):
            reader.read(rows)
    with pytest.raises(UsageError, match="has views 0 to 0, not 1"):
        reader.read([0], view=1)
    assert reader.read([])["embedding"].shape == (0, 4)


@pytest.mark.parametrize("damage", ["truncated", "deleted", "longer", "link"])
def test_a_damaged_shard_file(objects, damage):
    write_rows(objects)
    part = teacher_part()
    write_part(objects, part)
    path = objects.path("train/vit/embedding/c/0/0/0")
    data = path.read_bytes()
    path.unlink()
    if damage == "truncated":
        path.write_bytes(data[:-1])
    if damage == "longer":
        path.write_bytes(data + b"\0")
    if damage == "link":
        (objects.root / "elsewhere").write_bytes(data)
        path.symlink_to(objects.root / "elsewhere")
    with pytest.raises(CorruptCacheError):
        open_cache(objects.root).split().read([0])


@pytest.mark.parametrize("rows", [10, 2500])
def test_keys_labels_and_contents(objects, rows):
    write_rows(objects, rows=rows)
    write_part(objects, teacher_part(rows))
    reader = open_cache(objects.root).split()
    keys = keys_of(rows)
    assert len(reader) == rows and reader.keys == keys
    assert reader.labels.dtype == np.int64 and reader.labels.tolist() == [row % 3 - 1 for row in range(rows)]
    assert reader.content_hashes.tolist() == [content_hash(key.encode()) for key in keys]
    assert (reader.modality, reader.class_names) == ("text", ("a", "b", "c"))
    shuffled = [keys[7], "no such key", keys[0], keys[-1]]
    assert reader.rows_of(shuffled).tolist() == [7, -1, 0, rows - 1]
    assert reader.rows_of([]).dtype == np.int64
    text = zarr.open_group(objects.root, mode="r")["train/rows/key_text"][:].tobytes()
    offsets = zarr.open_group(objects.root, mode="r")["train/rows/key_offsets"][:]
    assert [text[start:stop].decode() for start, stop in offsets] == keys


def test_unknown_names_are_answered_with_the_nearest(objects):
    write_rows(objects)
    write_part(objects, teacher_part())
    cache = open_cache(objects.root)
    with pytest.raises(UnknownNameError, match="no split of this cache is called 'trian'.*'train'"):
        cache.split("trian")
    with pytest.raises(UnknownNameError, match="output in split 'train'.*called 'embeding'.*'embedding'"):
        cache.split().read([0], outputs=["embeding"])
    with pytest.raises(UnknownNameError, match="known: embedding"):
        cache.split().valid(["x"])


def test_valid_rows_and_reasons(objects):
    write_rows(objects)
    part = teacher_part()
    writer = CacheWriter(objects, part)
    (shard,) = writer.pending()
    rows = values_of(part, shard)
    rows["reason"][[2, 5]] = 6, 2
    rows["valid"][[2, 5]] = 0
    writer.write(shard, rows)
    reader = open_cache(objects.root).split()
    assert np.flatnonzero(~reader.valid(["embedding"])).tolist() == [2, 5] == np.flatnonzero(~reader.valid()).tolist()
    assert reader.valid([]).all() and reader.valid([]).shape == (10,)
    assert reader.reasons("embedding").tolist() == [0, 0, 6, 0, 0, 2, 0, 0, 0, 0]
    (record,) = PartReader(objects, part).records.values()
    assert record.invalid == {"CORRUPT_IMAGE": 1, "NOT_FINITE": 1}


def test_a_cache_of_rows_alone(objects):
    write_rows(objects)
    reader = open_cache(objects.root).split()
    assert reader.outputs == {} and reader.read([0]) == {} and reader.valid().tolist() == [True] * 10


def test_rows_that_are_not_all_listed(objects):
    part = teacher_part(10)
    write_part(objects, part)
    with pytest.raises(IncompleteError, match="the rows of split 'train' are not all listed yet"):
        open_cache(objects.root).split()


def test_a_teacher_over_other_rows(objects):
    write_rows(objects, rows=10)
    write_part(objects, teacher_part(11))
    with pytest.raises(CorruptCacheError, match="train/vit is over other rows than train/rows"):
        open_cache(objects.root).split()


def test_of_a_sealed_cache_only_what_is_sealed_is_seen(objects):
    write_rows(objects)
    write_part(objects, teacher_part(name="a"))
    seal(objects)
    write_part(objects, teacher_part(name="b", recipe="two"))
    cache = open_cache(objects.root)
    assert [part.name for part in cache.parts("train")] == ["a", "rows"]
    assert (
        [part.name for part in cache.all_parts()]
        == ["a", "b", "rows"]
        == [p.name for p in find_parts(objects, "train")]
    )
    assert set(cache.split().outputs) == {"embedding"}
    (objects.root / "train/a/part.json").unlink()
    with pytest.raises(CorruptCacheError, match="train/a is sealed, but it is not in"):
        open_cache(objects.root).split()


def test_where_there_is_no_cache(tmp_path):
    with pytest.raises(UsageError, match="there is no cache at"):
        open_cache(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "{}",
        '{"format":"featurecache","version":2,"uuid":"x","source":{}}',
        '{"format":"featurecache","version":1}',
        '{"format":"featurecache","version":1,"uuid":"x","source":7}',
        "x",
    ],
)
def test_a_cache_json_that_cannot_be(objects, content):
    path = objects.root / "cache.json"
    path.unlink()
    path.write_text(content)
    with pytest.raises(CorruptCacheError):
        open_cache(objects.root)


def test_folders_of_other_tools_do_not_disturb(objects):
    write_rows(objects)
    (objects.root / ".git/refs").mkdir(parents=True)
    (objects.root / "train/.DS_Store").touch()
    (objects.root / "train/rows/_commits/.nfs000").touch()
    (objects.root / "README.md").touch()
    assert open_cache(objects.root).splits == ["train"] and len(open_cache(objects.root).split()) == 10
    os.symlink("/", objects.root / "root")
    assert open_cache(objects.root).splits == ["train"]


@pytest.mark.parametrize("class_names", [[], ["a"]])
def test_labels_beyond_the_classes(objects, class_names):
    write_rows(objects, class_names=class_names)
    with pytest.raises(CorruptCacheError, match=f"train/rows/label has numbers beyond its {len(class_names)} classes"):
        _ = open_cache(objects.root).split().labels


def test_labels_up_to_the_last_class(objects):
    write_rows(objects, class_names=["a", "b"])
    assert open_cache(objects.root).split().labels.tolist() == [-1, 0, 1, -1, 0, 1, -1, 0, 1, -1]
