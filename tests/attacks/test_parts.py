"""part.json that asks for too much, or leads elsewhere; every hash in it is right."""

import json

import pytest

from featurecache.errors import UsageError
from featurecache.store.layout import check_name, rows_per_shard
from featurecache.store.objects import LocalObjects
from featurecache.store.parts import metadata, read_part
from featurecache.types import ArraySpec
from tests.attacks.hostile import Attack, change, check, value_of, write
from tests.attacks.reading import described
from tests.store.small_parts import rows_identity, signed

PART = "train/vit/part.json"
NAMES = {
    "two dots": "..",
    "a way out": "../../etc/passwd",
    "absolute": "/etc",
    "backslash": "a\\b",
    "NUL": "a\0b",
    "upper case": "Embedding",
    "65 characters": "a" * 65,
    "a dot first": ".hidden",
    "a drive": "c:",
    "not ASCII": "ü",
    "empty": "",
}


def field(*path, to):
    return lambda root: change(root, PART, *path, to=to)


def claim_rows(rows, *, part=PART):
    """So many rows, consistently, in a part that has ten."""

    def build(root):
        value = value_of(root, part)
        arrays = [ArraySpec(a["name"], a["dtype"], tuple(a["shape"]), (), a["longest"]) for a in value["arrays"]]
        value |= {"rows": rows, "rows_per_shard": rows_per_shard(rows, arrays)}
        write(root, part, value)

    return build


def claim_everywhere(root):
    """5,000 rows in both parts, and records for them over files that are not there."""
    for name in ("rows", "vit"):
        key = f"train/{name}/part.json"
        claim_rows(5000, part=key)(root)
        value = value_of(root, key)
        identity = rows_identity(5000) if name == "rows" else {**value["identity"], "data": rows_identity(5000)}
        value["identity"] = identity
        value["recipe_id"] = hash_of(identity)
        write(root, key, value)
        for array_key, content in metadata(read_part(LocalObjects(root), f"train/{name}")).items():
            write(root, array_key, content)
        record = value_of(root, f"train/{name}/_commits/00000-0000000.json")
        for shard in range(5):
            objects = [{**item, "key": key_of(item["key"], shard, name)} for item in record["objects"]]
            rows = [shard * 1024, min(shard * 1024 + 1024, 5000)]
            forged = {**record, "recipe_id": value["recipe_id"], "shard": shard, "rows": rows, "objects": objects}
            write(root, f"train/{name}/_commits/00000-{shard:07d}.json", forged)


def key_of(key, shard, part):
    head, tail = key.split("/c/")
    numbers = tail.split("/")
    numbers[0 if part == "rows" else 1] = str(shard)
    return f"{head}/c/{'/'.join(numbers)}"


def hash_of(value):
    return json.loads(signed(value))["sha256"]


def million_shards(root):
    """One row in a million views: a shard for each, of which none is there."""
    value = value_of(root, PART)
    write(root, PART, {**value, "views": [0, 2**20], "rows_per_shard": value["rows_per_shard"]})


ATTACKS = [
    Attack("shape 2**62", field("arrays", 0, "shape", to=[2**62]), PART),
    Attack("shape 2**40", field("arrays", 0, "shape", to=[2**40]), PART),
    Attack("a thousand axes", field("arrays", 0, "shape", to=[1] * 1000), PART),
    Attack("a shape of zero", field("arrays", 0, "shape", to=[0]), PART),
    Attack("a negative shape", field("arrays", 0, "shape", to=[-4]), PART),
    Attack("a boolean shape", field("arrays", 0, "shape", to=[True]), PART),
    Attack("2**62 rows", field("rows", to=2**62), PART),
    Attack("2**47 rows", claim_rows(2**47), PART),
    Attack("boolean rows", field("rows", to=True), PART),
    Attack("fractional rows", field("rows", to=10.0), PART),
    Attack("more rows than the split", claim_rows(10_000), PART),
    Attack("more rows than there are bytes", claim_everywhere, "train/rows/key_offsets/c/1/0", says="over other rows"),
    Attack("a million shards", million_shards, PART),
    Attack("2**40 views", field("views", to=[0, 2**40]), PART),
    Attack("a negative view", field("views", to=[-1, 1]), PART),
    Attack("a negative inner chunk", field("arrays", 0, "inner_rows", to=-1), PART),
    Attack("a huge inner chunk", field("arrays", 0, "inner_rows", to=2**50), PART),
    Attack("a negative capacity", field("arrays", 0, "longest", to=-1), PART),
    Attack("a huge capacity", field("arrays", 0, "longest", to=2**50), PART),
    Attack("shards of no rows", field("rows_per_shard", to=0), PART),
    Attack("data type of objects", field("arrays", 0, "dtype", to="object"), PART),
    Attack("data type |O", field("arrays", 0, "dtype", to="|O"), PART),
    Attack("data type of the future", field("arrays", 0, "dtype", to="float128"), PART),
    Attack("unknown encoding", field("outputs", 0, "encoding", to="pickle"), PART),
    Attack("encoding with a path", field("outputs", 0, "encoding", to="../float32"), PART),
    Attack("topk of nothing", field("outputs", 0, "encoding", to="topk:-1"), PART),
    Attack("topk of everything", field("outputs", 0, "encoding", to="topk:99999999999@1e308,0"), PART),
    Attack("no draws", field("outputs", 0, "encoding", to="sampled:0"), PART),
    Attack("draws without end", field("outputs", 0, "encoding", to=f"topk:2+sampled:{'9' * 5000}@1e308"), PART),
    Attack("encoding of other arrays", field("outputs", 0, "encoding", to="float32"), PART),
    Attack("output of another shape", field("outputs", 0, "shape", to=[2**40]), PART),
    Attack("unknown format", field("format", to=2), PART),
    Attack("facts that are a list", field("facts", to=[]), PART),
    Attack("another identity", field("identity", to={}), PART),
    Attack("a key twice", lambda root: write(root, PART, b'{"format":1,' + signed(value_of(root, PART))[1:]), PART),
    Attack("NaN", lambda root: write(root, PART, signed(value_of(root, PART)).replace(b"10", b"NaN", 1)), PART),
    Attack("Infinity", lambda root: write(root, PART, signed(value_of(root, PART)).replace(b"10", b"1e999", 1)), PART),
    *(Attack(f"part name: {what}", field("name", to=name), PART) for what, name in NAMES.items()),
    *(Attack(f"split name: {what}", field("split", to=name), PART) for what, name in NAMES.items()),
    *(Attack(f"array name: {what}", field("arrays", 0, "name", to=name), PART) for what, name in NAMES.items()),
    *(
        Attack(f"asset name: {what}", field("assets", to={name: {"bytes": 2, "sha256": "0" * 64}}), PART)
        for what, name in NAMES.items()
    ),
]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_parts(attack, good, tmp_path):
    check(attack, good, tmp_path / "cache")


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_no_such_name_becomes_a_path(name, tmp_path):
    with pytest.raises(UsageError):
        check_name(name, "part")
    if name not in ("Embedding", "a" * 65):
        with pytest.raises(UsageError):
            LocalObjects(tmp_path).path(f"train/{name}/x")


def test_the_good_cache_can_be_described(good):
    assert described(good) == []
