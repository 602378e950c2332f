import os

import numpy as np
import pytest
import safetensors.torch
import torch
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from featurecache.errors import CorruptCacheError, IncompleteError, UnknownNameError, UsageError
from featurecache.fingerprint import content_hash
from featurecache.store.commit import find_parts, seal
from featurecache.store.layout import REASON, VALID, EncodedOutput, PartSpec
from featurecache.store.part_reader import PartReader
from featurecache.store.reader import open_cache
from featurecache.store.writer import CacheWriter
from featurecache.types import ArraySpec, OutputSpec, SparseLogits
from tests.store.small_parts import keys_of, teacher_part, values_of, write_part, write_rows

DTYPES = ("float32", "float16", "uint8", "uint16", "uint64", "int32", "int64")
MANY = (
    ArraySpec("wide", "float32", (5, 300), ("a", "b")),  # several inner chunks in a shard
    *(ArraySpec(f"flat-{dtype}", dtype) for dtype in DTYPES),
    ArraySpec("pairs", "int64", (2,)),
    VALID,
    REASON,
)


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Three views of 2,500 rows in every dtype: the part, its model, and Zarr's own reading of it."""
    from featurecache.store.writer import create_cache

    objects = create_cache(tmp_path_factory.mktemp("many"), source={})
    part = teacher_part(2500, views=(4, 7), arrays=MANY)
    model = write_part(objects, part)
    return objects, part, model


@pytest.mark.parametrize("array", MANY, ids=lambda array: array.name)
def test_whole_arrays_equal_the_model_and_zarr(many, array):
    objects, part, model = many
    by_zarr = zarr.open_group(objects.root, mode="r")[f"train/vit/{array.name}"]
    assert by_zarr.shape == (3, 2500, *array.shape) and by_zarr.dtype == array.dtype
    reader = PartReader(objects, part)
    for view in range(3):
        ours = reader.whole(array.name, view=4 + view)
        assert ours.dtype == array.dtype
        np.testing.assert_array_equal(ours, model[array.name][view])
        np.testing.assert_array_equal(by_zarr[view], model[array.name][view])


@given(rows=st.lists(st.integers(0, 2499), max_size=50), view=st.integers(4, 6), trust=st.booleans())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
def test_rows_in_any_order_equal_the_model(many, rows, view, trust):
    objects, part, model = many
    index = np.array(rows, np.int64)
    reader = PartReader(objects, part, trust=trust)
    for array in MANY[:3]:
        found = reader.take(array, index, view=view)
        np.testing.assert_array_equal(found, model[array.name][view - 4][index])
        assert found.flags.writeable


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


def test_every_flipped_byte_of_the_rows_is_found_when_it_is_touched(objects):
    part = teacher_part(6)
    write_part(objects, part)
    (record,) = PartReader(objects, part).records.values()
    path = objects.path(record.payloads[0].key)
    path.chmod(0o644)
    good = path.read_bytes()
    rows = np.arange(6)
    for at in range(6 * 8):
        path.write_bytes(good[:at] + bytes([good[at] ^ (1 << at % 8)]) + good[at + 1 :])
        with pytest.raises(CorruptCacheError, match="rows 0 to 5 of train/vit/embedding are not what was committed"):
            PartReader(objects, part).take(part.arrays[0], rows)
        PartReader(objects, part, trust=True).take(part.arrays[0], rows)
    path.write_bytes(good)
    PartReader(objects, part).take(part.arrays[0], rows)


def test_only_touched_chunks_are_checked(many, tmp_path):
    objects, part, _ = many
    path = objects.path("train/vit/wide/c/1/2/0/0")  # 452 rows of 6,000 bytes; 64 rows in a chunk
    good = path.read_bytes()
    path.chmod(0o644)
    try:
        path.write_bytes(good[:-100_000] + bytes([good[-100_000] ^ 1]) + good[-99_999:])
        reader = PartReader(objects, part)
        reader.take(MANY[0], np.array([2048, 2111]), view=5)
        with pytest.raises(CorruptCacheError, match=r"rows 2,496 to 2,499 of train/vit/wide \(view slot 1\)"):
            reader.take(MANY[0], np.array([2048, 2499]), view=5)
    finally:
        path.write_bytes(good)


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


@pytest.mark.parametrize("offsets", [[0, 10**6], [-1, 2], [5, 2], [0, 2**62], [2**40, 2**40 + 1]])
def test_hostile_offsets(objects, offsets):
    part = write_rows(objects)
    with pytest.raises(CorruptCacheError):
        PartReader(objects, part).elements("key_text", np.array([offsets]))


def test_offsets_into_what_is_not_there(objects):
    part = teacher_part(20, views=None, arrays=(ArraySpec("text", "uint8", longest=2**19), VALID))
    writer = CacheWriter(objects, part)
    (shard,) = writer.pending()
    writer.write(shard, {"text": np.ones(3, np.uint8), "valid": np.ones(20, np.uint8)})
    reader = PartReader(objects, part)
    assert reader.elements("text", np.array([[1, 3]]))[0].tolist() == [1, 1]
    with pytest.raises(IncompleteError):
        reader.elements("text", np.array([[2**19 - 1, 2**19 + 1]]))


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


def test_sparse_logits(objects):
    write_rows(objects)
    arrays = (
        ArraySpec("logits.values", "float16", (2,), ("rank",)),
        ArraySpec("logits.indices", "uint16", (2,), ("rank",)),
        ArraySpec("logits.logsumexp", "float32", (1,), ("temperature",)),
        VALID,
        REASON,
    )
    part = teacher_part(arrays=arrays)
    part = PartSpec(
        **{
            name: getattr(part, name)
            for name in ("name", "kind", "split", "rows", "identity", "arrays", "views", "facts")
        },
        outputs=(EncodedOutput(OutputSpec("logits", (7000,)), "topk:2@3"),),
    )
    model = write_part(objects, part)
    found = open_cache(objects.root).split().read([3, 1])["logits"]
    assert isinstance(found, SparseLogits) and (found.size, found.temperatures) == (7000, (3.0,))
    assert np.array_equal(found.values, model["logits.values"][0, [3, 1]])
    assert np.array_equal(found.indices, model["logits.indices"][0, [3, 1]])
    assert np.array_equal(found.logsumexp, model["logits.logsumexp"][0, [3, 1]])


def test_arrays_that_are_not_those_of_the_encoding(objects):
    write_rows(objects)
    write_part(objects, teacher_part(arrays=(ArraySpec("embedding", "int64", (4,), ("feature",)), VALID, REASON)))
    with pytest.raises(CorruptCacheError, match="has not the arrays of float16"):
        open_cache(objects.root).split().read([0])


def test_a_teacher_over_other_rows(objects):
    write_rows(objects, rows=10)
    write_part(objects, teacher_part(11))
    with pytest.raises(CorruptCacheError, match="train/vit is over other rows than train/rows"):
        open_cache(objects.root).split()


def test_a_second_teacher_takes_the_name_and_the_first_keeps_its_own(objects):
    write_rows(objects)
    first = write_part(objects, teacher_part(name="a", recipe="one"))
    second = write_part(objects, teacher_part(name="b", recipe="two"), seed=1)
    reader = open_cache(objects.root).split()
    assert set(reader.outputs) == {"embedding", "a/embedding"}
    found = reader.read([4])
    assert np.array_equal(found["embedding"], second["embedding"][0, [4]])
    assert np.array_equal(found["a/embedding"], first["embedding"][0, [4]])
    assert (reader.teacher_part("a/embedding").name, reader.output_part("embedding").name) == ("a", "b")


def add_probe(objects, name, order, *, split="train", teacher="id-one", weight=None, shape=(3,)):
    """A probe of three classes on the embedding; returns its (weight, bias)."""
    head = weight if weight is not None else torch.randn(3, 4, generator=torch.Generator().manual_seed(order))
    bias = torch.arange(float(len(head))) + order
    part = PartSpec(
        name=name,
        kind="probe",
        split=split,
        rows=10,
        identity={"kind": "probe", "name": name},
        arrays=(ArraySpec("labelled", "uint8"),),
        outputs=(EncodedOutput(OutputSpec("logits", shape), "head"),),
        facts={"teacher_id": teacher, "input": "embedding", "order": order},
    )
    assets = {"head.safetensors": safetensors.torch.save({"weight": head, "bias": bias})}
    writer = CacheWriter(objects, part, assets=assets)
    for shard in writer.pending():
        writer.write(shard, {"labelled": np.ones(10, np.uint8)})
    return head.double().numpy(), bias.double().numpy()


def test_a_probe_is_its_head_on_the_embedding_and_the_latest_wins(objects):
    write_rows(objects)
    write_rows(objects, split="test")
    model = write_part(objects, teacher_part())["embedding"][0].astype(np.float64)
    on_test = write_part(objects, teacher_part(split="test"), seed=3)["embedding"][0].astype(np.float64)
    newest, bias = add_probe(objects, "probe", 2)
    older, older_bias = add_probe(objects, "zz-older", 1)
    add_probe(objects, "of-another-teacher", 9, teacher="id-other")
    rows = [9, 0, 0, 5]
    reader = open_cache(objects.root).split()
    found = reader.read(rows)
    assert set(found) == {"embedding", "logits", "zz-older/logits"}
    assert reader.output_part("logits").name == "probe" and reader.teacher_part("logits").name == "vit"
    np.testing.assert_allclose(found["logits"].numpy(), model[rows] @ newest.T + bias, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        found["zz-older/logits"].numpy(), model[rows] @ older.T + older_bias, rtol=1e-5, atol=1e-5
    )
    assert reader.valid(["logits"]).all() and not reader.reasons("logits").any()
    other = open_cache(objects.root).split("test").read([3], outputs=["logits"])["logits"]
    np.testing.assert_allclose(other.numpy(), on_test[[3]] @ newest.T + bias, rtol=1e-5, atol=1e-5)


def test_a_probe_whose_input_this_split_does_not_hold(objects):
    write_rows(objects)
    part = teacher_part()
    kept = {
        name: getattr(part, name) for name in ("name", "kind", "split", "rows", "identity", "arrays", "views", "facts")
    }
    write_part(objects, PartSpec(**kept, outputs=(EncodedOutput(OutputSpec("tokens", (4,)), "float16"),)))
    add_probe(objects, "probe", 0)
    assert list(open_cache(objects.root).split().outputs) == ["tokens"]


@pytest.mark.parametrize("weight", [torch.zeros(3, 5), torch.zeros(2, 4), torch.zeros(3)])
def test_a_head_that_does_not_fit(objects, weight):
    write_rows(objects)
    write_part(objects, teacher_part())
    add_probe(objects, "probe", 0, weight=weight)
    with pytest.raises(CorruptCacheError, match="the head of train/probe does not fit the embedding"):
        open_cache(objects.root).split().read([0], outputs=["logits"])


def test_a_head_that_is_no_safetensors(objects):
    write_rows(objects)
    write_part(objects, teacher_part())
    add_probe(objects, "probe", 0)
    path = objects.root / "train/probe/assets/head.safetensors"
    path.chmod(0o644)
    path.write_bytes(b"\x80\x04pickle?")
    with pytest.raises(CorruptCacheError, match="the head of train/probe cannot be read"):
        open_cache(objects.root).split().read([0], outputs=["logits"])


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
