import hashlib
import json

import google_crc32c
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from featurecache.errors import CorruptCacheError, IncompleteError, UsageError
from featurecache.store import commit
from featurecache.store.commit import CommitRecord, is_complete, read_records
from featurecache.store.layout import Asset
from featurecache.store.objects import LocalObjects
from featurecache.store.parts import check_array, check_asset, read_asset, read_part, splits
from featurecache.store.seals import latest_seal, seal
from featurecache.store.writer import CacheWriter
from tests.store.small_parts import signed, teacher_part, write_part, write_rows
from tests.store.test_layout import HOSTILE, paths_of, replaced


def rewrite(path, content):
    """Put other bytes, or JSON with the right hash of itself, where something stands."""
    path.unlink()
    path.write_bytes(content if isinstance(content, bytes) else signed(content))


def test_a_record_says_what_is_on_disk(objects):
    part = teacher_part(2500, views=(3, 5))
    write_part(objects, part)
    value = json.loads((objects.root / "train/vit/_commits/00004-0000002.json").read_bytes())
    assert (value["view"], value["shard"], value["rows"], value["invalid"]) == (4, 2, [2048, 2500], {})
    assert value["recipe_id"] == part.recipe_id and value["format"] == 1
    assert [item["key"] for item in value["objects"]] == [
        "train/vit/embedding/c/1/2/0",
        "train/vit/valid/c/1/2",
        "train/vit/reason/c/1/2",
    ]
    for item in value["objects"]:
        data = (objects.root / item["key"]).read_bytes()
        assert item["bytes"] == len(data)
        assert item["sha256"] == hashlib.sha256(data).hexdigest()
        assert item["crc32c"] == google_crc32c.value(data)
        assert item["inner_crc32c"] == [google_crc32c.value(data[:-20])]
    assert len(read_records(objects, part)) == 6


def test_a_seal_lists_every_object_and_its_digest_is_of_its_bytes(objects):
    write_rows(objects)
    write_part(objects, teacher_part())
    sealed = seal(objects)
    data = (objects.root / "seals/0.json").read_bytes()
    value = json.loads(data)
    assert sealed.digest == hashlib.sha256(data).hexdigest()
    assert (sealed.number, sealed.parts) == (0, ("train/rows", "train/vit")) or sealed.parts == (
        "train/rows",
        "train/vit",
    )
    expected = []
    for path in sorted(objects.root.rglob("*"), key=lambda path: str(path.relative_to(objects.root))):
        if path.is_file() and "seals" not in path.parts:
            content = path.read_bytes()
            expected.append(
                {
                    "key": str(path.relative_to(objects.root)),
                    "bytes": len(content),
                    "crc32c": google_crc32c.value(content),
                    "sha256": hashlib.sha256(content).hexdigest(),
                }
            )
    assert value["objects"] == expected and value["previous"] is None
    assert sealed.total_bytes == sum(entry["bytes"] for entry in expected)


def test_sealing_twice_is_one_seal_and_new_parts_make_the_next(objects):
    write_rows(objects)
    first = seal(objects)
    assert seal(objects) == first == latest_seal(objects)
    write_part(objects, teacher_part(2500, name="half"), skip={(0, 1)})
    assert seal(objects) == first  # an incomplete part is not sealed
    write_part(objects, teacher_part())
    second = seal(objects)
    assert (second.number, second.parts) == (1, ("train/rows", "train/vit"))
    assert json.loads((objects.root / "seals/1.json").read_bytes())["previous"] == first.digest
    assert objects.list("seals") == ["0.json", "1.json"]


def test_nothing_is_complete(objects):
    write_part(objects, teacher_part(2500), skip={(0, 1)})
    assert latest_seal(objects) is None
    with pytest.raises(IncompleteError, match="nothing in .* is complete yet"):
        seal(objects)


def test_a_seal_that_another_run_took_meanwhile_still_covers_everything(objects, monkeypatch):
    write_rows(objects)
    real, calls = LocalObjects.put_new, []

    def put_new(self, key, data):
        if key.startswith("seals/") and not calls:
            calls.append(key)
            real(self, key, data)  # the other run sealed the rows alone ...
            write_part(self, teacher_part())
            return False  # ... and took our number
        return real(self, key, data)

    monkeypatch.setattr(commit.LocalObjects, "put_new", put_new)
    assert seal(objects).parts == ("train/rows", "train/vit")


def test_a_payload_that_is_gone_is_not_sealed(objects):
    write_part(objects, teacher_part())
    (objects.root / "train/vit/valid/c/0/0").unlink()
    with pytest.raises(CorruptCacheError, match="train/vit/valid/c/0/0"):
        seal(objects)


def test_splits(objects):
    write_rows(objects, split="train")
    write_rows(objects, split="test")
    seal(objects)
    (objects.root / "docs").mkdir()
    assert splits(objects) == ["test", "train"]
    assert is_complete(objects, teacher_part()) is False


@given(data=st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_hostile_commit_records(objects, data):
    part = teacher_part()
    write_part(objects, part)
    path = objects.root / CommitRecord.key(part, part.shards()[0])
    good = json.loads(path.read_bytes())
    changed = data.draw(st.sampled_from(sorted(paths_of(good), key=str)))
    value = data.draw(HOSTILE | st.sampled_from([-1, 2**63, 10**400, "0" * 64, [2**32], [0, 0], {"VALID": 1e999}]))
    try:
        rewrite(path, replaced(good, changed, value))
        record = read_records(objects, part)[0, 0]
        assert [payload.bytes for payload in record.payloads] == [item["bytes"] for item in good["objects"]]
    except CorruptCacheError:
        pass
    finally:
        rewrite(path, good)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("recipe_id",), "0" * 64),
        (("rows",), [0, 9]),
        (("view",), 1),
        (("shard",), 1),
        (("format",), 2),
        (("invalid",), {"NO_SUCH": 1}),
        (("invalid",), {"NOT_FINITE": -1}),
        (("objects",), []),
        (("objects", 0, "key"), "train/vit/valid/c/0/0"),
        (("objects", 0, "key"), "../../secret"),
        (("objects", 0, "bytes"), 2**40),
        (("objects", 0, "inner_crc32c"), []),
        (("objects", 0, "inner_crc32c"), [2**40]),
    ],
)
def test_a_record_that_cannot_be(objects, path, value):
    part = teacher_part()
    write_part(objects, part)
    file = objects.root / CommitRecord.key(part, part.shards()[0])
    rewrite(file, replaced(json.loads(file.read_bytes()), path, value))
    with pytest.raises(CorruptCacheError, match=r"train/vit/_commits/00000-0000000\.json"):
        read_records(objects, part)


def test_a_record_too_many(objects):
    part = teacher_part()
    write_part(objects, part)
    (objects.root / "train/vit/_commits/00000-0000001.json").write_text("{}")
    with pytest.raises(CorruptCacheError, match="is not a commit record of this part"):
        read_records(objects, part)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ((), []),
        ((), 7),
        (("number",), 1),
        (("format",), 2),
        (("parts",), [1]),
        (("parts",), None),
        (("objects",), None),
        (("objects", 0), "x"),
        (("objects", 0, "bytes"), -1),
        (("objects", 0, "bytes"), "1"),
        (("objects", 0, "sha256"), "0" * 63),
        (("objects", 0, "key"), "../x"),
        (("objects", 0), {}),
        (("sealed",), 0),
        (("previous",), "x"),
        (("parts", 0), "train"),
        (("parts", 0), "train/rows/label"),
    ],
)
def test_a_seal_that_cannot_be(objects, path, value):
    write_rows(objects)
    seal(objects)
    file = objects.root / "seals/0.json"
    rewrite(file, replaced(json.loads(file.read_bytes()), path, value))
    with pytest.raises(CorruptCacheError, match=r"seals/0\.json"):
        latest_seal(objects)


def test_other_files_beside_the_seals(objects):
    write_rows(objects)
    sealed = seal(objects)
    for name in ("²", "007.json", "x.json", "1.json.bak"):
        (objects.root / "seals" / name).write_text("{}")
    assert latest_seal(objects) == sealed


def test_a_seal_has_no_other_fields(objects):
    write_rows(objects)
    seal(objects)
    file = objects.root / "seals/0.json"
    value = json.loads(file.read_bytes())
    for changed in ({**value, "more": 1}, {**value, "objects": [{**value["objects"][0], "more": 1}]}):
        rewrite(file, changed)
        with pytest.raises(CorruptCacheError, match="other fields than"):
            latest_seal(objects)


def test_a_seal_larger_than_its_cache_can_have_is_not_read(objects, monkeypatch):
    write_rows(objects)
    seal(objects)
    value = json.loads((objects.root / "seals/0.json").read_bytes())
    entry = value["objects"][-1]
    value["objects"] = [{**entry, "key": f"x{number:09d}"} for number in range(9000)]
    rewrite(objects.root / "seals/0.json", value)
    assert (objects.root / "seals/0.json").stat().st_size > 2**20 + 512 * 20
    monkeypatch.setattr(json, "loads", lambda *_, **__: pytest.fail("parsed"))
    with pytest.raises(CorruptCacheError, match=r"seals/0\.json in .* is larger than"):
        latest_seal(objects)


def test_a_seal_beyond_a_megabyte_of_a_cache_that_has_so_many_objects(objects):
    write_rows(objects)
    entry = json.loads(signed({"key": "x", "bytes": 0, "crc32c": 0}))
    for number in range(600):
        (objects.root / f"x{number}").touch()
    value = {
        "format": 1,
        "number": 0,
        "previous": None,
        "sealed": "",
        "parts": [],
        "objects": [{**entry, "key": "x" * 200 + f"{number:09d}"} for number in range(3500)],
    }
    (objects.root / "seals").mkdir()
    (objects.root / "seals/0.json").write_bytes(signed(value))
    assert 2**20 < (objects.root / "seals/0.json").stat().st_size < 2**20 + 600 * 512
    sealed = latest_seal(objects)
    assert sealed is not None and sealed.parts == ()


def test_assets_are_those_that_part_json_names(objects):
    part = teacher_part()
    CacheWriter(objects, part, assets={"tokenizer.json": b"{}"})
    write_rows(objects)
    write_part(objects, part)
    (objects.root / "train/vit/assets/more.json").write_text("{}")
    seal(objects)
    found = read_part(objects, "train/vit")
    assert found.assets == {"tokenizer.json": Asset(2, hashlib.sha256(b"{}").hexdigest())}
    assert read_asset(objects, found, "tokenizer.json") == b"{}"
    with pytest.raises(CorruptCacheError, match=r"names no asset more\.json"):
        read_asset(objects, found, "more.json")
    listed = {entry["key"] for entry in json.loads((objects.root / "seals/0.json").read_bytes())["objects"]}
    assert "train/vit/assets/tokenizer.json" in listed and "train/vit/assets/more.json" not in listed
    rewrite(objects.root / "train/vit/assets/tokenizer.json", b"[]")
    for read in (read_asset, check_asset):
        with pytest.raises(CorruptCacheError, match=r"tokenizer\.json is not what train/vit/part\.json names"):
            read(objects, found, "tokenizer.json")


def test_array_metadata_is_what_part_json_implies(objects):
    part = teacher_part()
    write_part(objects, part)
    check_array(objects, part, part.array("embedding"))
    path = objects.root / "train/vit/embedding/zarr.json"
    rewrite(path, path.read_bytes().replace(b"float16", b"float32"))
    with pytest.raises(CorruptCacheError, match=r"train/vit/embedding/zarr\.json is not the metadata"):
        check_array(objects, part, part.array("embedding"))


def test_shards_by_number():
    part = teacher_part(2500, views=(3, 5))
    assert part.shard_count == len(part.shards()) == 6
    assert [part.shard(shard.view, shard.index) for shard in part.shards()] == part.shards()
    for view, index in [(2, 0), (5, 0), (3, 3), (3, -1)]:
        with pytest.raises(UsageError, match="has no shard"):
            part.shard(view, index)
