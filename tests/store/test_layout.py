import dataclasses
import json
import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from featurecache.errors import CorruptCacheError, UsageError
from featurecache.fingerprint import hash_json
from featurecache.store.layout import (
    OFFSETS,
    EncodedOutput,
    PartSpec,
    array_metadata,
    check_name,
    inner_rows,
    rows_per_shard,
    shard_bytes,
    shard_key,
)
from featurecache.store.parts import part_from_json
from featurecache.types import ArraySpec, OutputSpec
from tests.store.small_parts import rows_identity, teacher_part

ITEM = {"float32": 4, "float16": 2, "int8": 1, "uint8": 1, "uint16": 2, "uint64": 8, "int32": 4, "int64": 8}
ARRAYS = st.tuples(st.sampled_from(list(ITEM)), st.lists(st.integers(1, 3000), max_size=2), st.just(0))
"""(dtype, shape, longest)"""


@given(rows=st.integers(1, 10**8), arrays=st.lists(ARRAYS, min_size=1, max_size=3))
@example(rows=65_535, arrays=[("uint8", [], 0)])
@example(rows=65_536 * 2, arrays=[("uint8", [], 0)])
@example(rows=10, arrays=[("float32", [2**24 + 1], 0)])
@example(rows=10**7, arrays=[("float16", [768], 0)])
@example(rows=10**7, arrays=[("uint8", [], 5000)])
def test_rows_per_shard(rows, arrays):
    expected = 1  # doubled while the next power of two keeps both limits
    widest = max(ITEM[dtype] * math.prod(shape) * (longest or 1) for dtype, shape, longest in arrays)
    while expected * 2 * widest <= 64 * 2**20 and expected * 2 <= max(1024, rows / 64):
        expected *= 2
    specs = [ArraySpec("values", dtype, tuple(shape), longest=longest) for dtype, shape, longest in arrays]
    assert rows_per_shard(rows, specs) == expected


@given(array=ARRAYS, shard_rows=st.integers(0, 20).map(lambda n: 2**n))
def test_inner_rows(array, shard_rows):
    dtype, shape, _ = array
    array = ArraySpec("values", dtype, tuple(shape))
    expected, width = 1, ITEM[dtype] * math.prod(shape)
    while expected * 2 * width <= 512 * 2**10 and expected * 2 <= shard_rows:
        expected *= 2
    assert inner_rows(array, shard_rows) == expected
    assert shard_bytes(array, shard_rows, 3) == 3 * expected * width + 16 * (shard_rows // expected) + 4


def test_shards_cover_every_row_of_every_view_once():
    part = teacher_part(2500, views=(2, 4))
    assert [(s.view, s.index, s.start, s.stop) for s in part.shards()] == [
        (2, 0, 0, 1024),
        (2, 1, 1024, 2048),
        (2, 2, 2048, 2500),
        (3, 0, 0, 1024),
        (3, 1, 1024, 2048),
        (3, 2, 2048, 2500),
    ]
    last = part.shards()[-1]
    assert shard_key(part, part.arrays[0], last) == "train/vit/embedding/c/1/2/0"  # views count from 0 in the array
    assert shard_key(part, part.arrays[1], last) == "train/vit/valid/c/1/2"


def test_array_metadata_of_a_ragged_array_has_room_for_the_longest_row():
    part = teacher_part(2500, views=None, arrays=(ArraySpec("text", "uint8", longest=10),))
    metadata = array_metadata(part, part.arrays[0])
    assert metadata["shape"] == [3 * 1024 * 10]
    assert metadata["chunk_grid"]["configuration"]["chunk_shape"] == [1024 * 10]
    assert metadata["dimension_names"] == ["element"]


@pytest.mark.parametrize(
    ("dtype", "fill"), [("float16", "NaN"), ("float32", "NaN"), ("int8", -128), ("uint8", 0), ("int64", 0)]
)
def test_fill_value_of_an_array(dtype, fill):
    part = teacher_part(10, arrays=(ArraySpec("values", dtype, (3,)),))
    found = array_metadata(part, part.arrays[0])["fill_value"]
    assert (found, type(found)) == (fill, type(fill))


@pytest.mark.parametrize("views", [None, (0, 1), (3, 7)])
def test_part_json_reads_back(views):
    part = PartSpec(
        name="vit-b.augreg2_in21k",
        kind="teacher",
        split="train",
        rows=2**40,
        identity={"kind": "teacher", "data": rows_identity(3), "ümlaut": [1.5, None, "ü"]},
        arrays=(
            ArraySpec("logits.values", "float16", (2, 3), ("a", "b")),
            ArraySpec("qkv.2", "float16", (3,), ("feature",), longest=2),
            OFFSETS,
        ),
        views=views,
        outputs=(
            EncodedOutput(OutputSpec("qkv.2", (3,), longest=2, heads=1), "float16"),
            EncodedOutput(OutputSpec("logits", (3,), ("x", "y", "z")), "topk:2@1"),
            EncodedOutput(OutputSpec("embedding", (2,)), "int8:column", (0.0, 1.5)),
        ),
        facts={"teacher": "vit", "teacher_id": "id", "input": {}},
        provenance={"created": "now"},
    )
    assert part_from_json(json.loads(json.dumps(part.to_json()))) == part
    assert part.to_json()["recipe_id"] == part.recipe_id == hash_json(part.identity)


@pytest.mark.parametrize("name", ["a", "train", "vit_base-16.augreg2_in21k", "a.b.c", "a" * 64])
def test_names(name):
    assert check_name(name, "part") == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "A",
        "1a",
        "_tmp",
        "-a",
        ".a",
        "a.",
        "a..b",
        "a/b",
        "../a",
        "a\\b",
        "a\n",
        "a\x00",
        "ä",
        "a b",
        "a" * 65,
        "assets",
        "seals",
        "c",
        "zarr.json",
        "cache.json",
        "part.json",
    ],
)
def test_names_that_no_directory_may_have(name):
    with pytest.raises(UsageError, match="cannot be the name of a part"):
        check_name(name, "part")


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.just("\ud800")
HOSTILE = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
)


def paths_of(value, path=()):
    """Every place in nested JSON."""
    yield path
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, child in children:
        yield from paths_of(child, (*path, name))


def replaced(value, path, new):
    if not path:
        return new
    copy = value.copy()
    copy[path[0]] = replaced(value[path[0]], path[1:], new)
    return copy


PART = teacher_part(2500, views=(0, 2)).to_json()
COLUMNS = {**PART, "outputs": [{**PART["outputs"][0], "encoding": "int8:column", "scale": [0, 1.5, 1e-9, 3e38]}]}
ROWS = {
    **PART,
    "kind": "rows",
    "identity": rows_identity(2500),
    "recipe_id": hash_json(rows_identity(2500)),
    "facts": {"modality": "image", "class_names": ["a"]},
}
PROBE = {**PART, "kind": "probe", "facts": {"teacher_id": "a", "input": "embedding", "order": 0}}


@pytest.mark.parametrize("good", [PART, ROWS, PROBE, COLUMNS], ids=["teacher", "rows", "probe", "columns"])
@given(data=st.data())
def test_hostile_part_json_is_refused_or_well_formed(good, data):
    path = data.draw(st.sampled_from(sorted(paths_of(good), key=str)))
    huge = st.sampled_from([0, -1, 2**31, 2**47, 2**63, 2**64, 10**400, [2**40] * 9, [0, 2**47], [5, 3], "", "../x"])
    try:
        part = part_from_json(replaced(good, path, data.draw(HOSTILE | huge)))
    except CorruptCacheError:
        return
    shards = part.shards()
    assert 1 <= len(shards) <= 2**20
    assert part.to_json()["rows_per_shard"] == part.rows_per_shard
    assert all(array_metadata(part, array)["shape"] for array in part.arrays)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("format",), 2),
        (("rows",), 0),
        (("rows",), True),
        (("rows",), 2499.0),
        (("views",), [3, 3]),
        (("views",), [0, 2**40]),
        (("views",), [0, 1, 2]),
        (("identity",), {"other": 1}),
        (("identity", "recipe"), math.nan),
        (("identity", "recipe"), "\ud800"),
        (("rows_per_shard",), 512),
        (("arrays", 0, "shape"), [0]),
        (("arrays", 0, "shape"), [2**62, 4]),
        (("arrays", 0, "dtype"), "object"),
        (("arrays", 0, "dtype"), ["float32"]),
        (("arrays", 0, "name"), "valid"),
        (("arrays", 0, "name"), "../../etc"),
        (("arrays", 0, "longest"), 3),
        (("arrays", 0, "dimensions"), ["a", "b"]),
        (("facts",), {}),
        (("outputs", 0, "encoding"), None),
    ],
)
def test_part_json_that_cannot_be(path, value):
    with pytest.raises(CorruptCacheError):
        part_from_json(replaced(PART, path, value))


@pytest.mark.parametrize("value", [None, [], "x", 3, {}])
def test_part_json_that_is_something_else(value):
    with pytest.raises(CorruptCacheError, match="does not describe a part"):
        part_from_json(value)


@pytest.mark.parametrize(
    "scale",
    [
        None,
        {},
        "1111",
        [],
        [1.0] * 3,
        [1.0] * 5,
        [1.0, 1.0, 1.0, -1.0],
        [1.0, 1.0, 1.0, math.inf],
        [1.0, 1.0, 1.0, math.nan],
        [1.0, 1.0, 1.0, 1e39],
        [1, 1, 1, 10**400],
        [1.0, 1.0, 1.0, True],
        [1.0, 1.0, 1.0, "1"],
        [[1.0], 1.0, 1.0, 1.0],
    ],
    ids=str,
)
def test_scales_that_cannot_be(scale):
    assert part_from_json(COLUMNS).outputs[0].scale == (0.0, 1.5, 1e-9, 3e38)
    with pytest.raises(CorruptCacheError, match="does not describe a part"):
        part_from_json(replaced(COLUMNS, ("outputs", 0, "scale"), scale))


def test_scales_that_should_not_be():
    for encoding in ("float16", "int8:row", "int8"):
        with pytest.raises(CorruptCacheError, match="needs 0 scales, and has 4"):
            part_from_json(replaced(COLUMNS, ("outputs", 0, "encoding"), encoding))


def test_a_part_is_not_written_before_it_has_its_scales():
    part = teacher_part(10)
    with pytest.raises(UsageError, match="int8:column of embedding needs 4 scales, and has 0"):
        dataclasses.replace(part, outputs=(EncodedOutput(OutputSpec("embedding", (4,)), "int8:column"),)).to_json()


def test_no_array_has_more_axes_than_can_be_read():
    assert teacher_part(arrays=(ArraySpec("embedding", "float16", (1,) * 30),)).arrays
    with pytest.raises(UsageError, match="more than 30 trailing axes"):
        teacher_part(arrays=(ArraySpec("embedding", "float16", (1,) * 31),))
