"""What `verify` finds in a small cache besides damaged bytes: strangers, forgeries, gaps; and what it leaves alone."""

import contextlib
import errno
import hashlib
import json
import os
import shutil

import pytest

from featurecache.errors import CorruptCacheError, UsageError
from featurecache.store.seals import latest_seal, seal
from featurecache.store.verify import Checked, verify
from featurecache.store.writer import create_cache
from tests.store.small_parts import signed, teacher_part, write_part, write_rows
from tests.store.tiny_cache import EMBEDDING, everything, files_of, problems


@pytest.fixture
def objects(tiny):
    return tiny


def test_a_good_cache(objects):
    events = list(verify(objects))
    assert all(isinstance(event, Checked) for event in events)
    files = [key for key in files_of(objects) if not key.startswith("seals/")]
    assert events[-1].done == events[-1].total == sum((objects.root / key).stat().st_size for key in files)
    assert len(events) == len(files) + 1


def test_an_index_of_another_byte_is_told_although_no_reader_looks_at_it(objects):
    path = objects.root / "train/vit/embedding/c/0/0/0"
    right = everything(objects.root)
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert [str(found) for found in problems(objects)] == [
        f"{EMBEDDING} is not what was committed: its index is another"
    ]
    assert everything(objects.root) == right


def test_every_whole_array_behind_a_wrong_shard_is_told_by_its_inner_chunk(objects):
    path = objects.root / EMBEDDING
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)
    assert [str(found) for found in problems(objects)] == [
        f"{EMBEDDING} is not what was committed: inner chunk 0 has another crc32c"
    ]


@pytest.mark.parametrize(
    "key",
    [
        "notes.txt",
        ".zgroup",
        "seals/x.json",
        "seals/01.json",
        "train/.zmetadata",
        "train/rows/extra/zarr.json",
        "train/vit/embedding/.zarray",
        "train/vit/embedding/c/0/1/0",
        "train/vit/embedding/c/1/0/0",
        "train/vit/embedding/c/0/0/00",
        "train/vit/assets/model.pkl",
        "train/vit/_commits/00000-0000001.json",
        "train/vit/_commits/.hidden",
        "train/evil/zarr.json",
        "train/evil/x/c/0",
        "other/zarr.json",
    ],
)
def test_strangers(objects, key):
    right = everything(objects.root)
    path = objects.root / key
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"{}")
    assert [found.key for found in problems(objects)] == [key]
    with contextlib.suppress(CorruptCacheError):
        assert everything(objects.root) == right


def test_what_is_no_object(objects):
    for name in ("_tmp/x", "_claims/train/vit/0.json", "README.md"):
        (objects.root / name).parent.mkdir(parents=True, exist_ok=True)
        (objects.root / name).write_text("anything")
    assert problems(objects) == []


def test_links_and_pipes(objects, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (objects.root / "train/more").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(objects.root / "pipe")
    (objects.root / "_tmp2").symlink_to("_tmp")
    assert [str(found) for found in problems(objects)] == [
        f"{key} is not a plain file" for key in ("_tmp2", "pipe", "train/more")
    ]


def test_consolidated_metadata_with_a_phantom(objects):
    root = json.loads((objects.root / "zarr.json").read_bytes())
    phantom = json.loads((objects.root / "train/vit/embedding/zarr.json").read_bytes())
    root["consolidated_metadata"] = {"kind": "inline", "must_understand": False, "metadata": {"phantom": phantom}}
    (objects.root / "zarr.json").write_text(json.dumps(root))
    assert [str(found) for found in problems(objects)] == ["zarr.json is not the metadata that belongs there"]


def rewrite(objects, key, /, **changes):
    """Other fields, and the right hash of them."""
    path = objects.root / key
    path.write_bytes(signed({**json.loads(path.read_bytes()), **changes}))


def said(objects, key):
    return [found.problem for found in problems(objects) if found.key == key]


def test_a_seal_that_was_forged(objects):
    value = json.loads((objects.root / "seals/1.json").read_bytes())
    good = (objects.root / "seals/1.json").read_bytes()
    names = [entry["key"] for entry in value["objects"]]
    at = names.index(EMBEDDING)
    other = [dict(entry) for entry in value["objects"]]
    other[at]["sha256"] = "0" * 64
    for fields, expected in [
        ({"previous": "0" * 64}, "was made after another seals/0.json than this one"),
        ({"previous": None}, "was made after another seals/0.json than this one"),
        ({"objects": value["objects"][1:]}, "says of cache.json something else than seals/0.json"),
        ({"objects": value["objects"][1:]}, "does not list cache.json"),
        ({"objects": other}, f"says of {EMBEDDING} something else than its commit record"),
        ({"parts": ["train/rows", "train/vit"]}, "lists train/probe/part.json"),
        ({"parts": [*value["parts"], "train/zzz"]}, "covers train/zzz, which is not there"),
        ({"objects": value["objects"][::-1]}, "seals/1.json is not a seal: its objects are not in order"),
        ({"parts": ["../x"]}, "seals/1.json is not a seal"),
        ({"number": 2}, "seals/1.json is not seal 1 of format 1"),
    ]:
        rewrite(objects, "seals/1.json", **fields)
        assert any(expected in problem for problem in said(objects, "seals/1.json")), expected
        (objects.root / "seals/1.json").write_bytes(good)


def test_a_chain_with_a_hole(objects):
    shutil.copy(objects.root / "seals/1.json", objects.root / "seals/3.json")
    rewrite(objects, "seals/3.json", number=3)
    assert [str(found) for found in problems(objects)] == ["seals/2.json is missing, and seals/3.json is there"]


def test_an_older_seal_that_was_replaced(objects):
    rewrite(objects, "seals/0.json", sealed="1970-01-01T00:00:00Z")
    assert said(objects, "seals/1.json") == ["was made after another seals/0.json than this one"]


def test_a_record_that_was_forged_is_not_what_the_seal_lists(objects):
    key = "train/vit/_commits/00000-0000000.json"
    rewrite(objects, key, invalid={"EMPTY_TEXT": 1})
    assert said(objects, key) == ["is not what the seal says (sha256, crc32c)"] or "bytes, the seal says" in str(
        said(objects, key)
    )


def test_rows_of_another_data_set(objects):
    value = json.loads((objects.root / "train/vit/part.json").read_bytes())
    identity = {**value["identity"], "data": {"kind": "rows"}}
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    rewrite(objects, "train/vit/part.json", identity=identity, recipe_id=digest)
    assert "is over other rows than train/rows" in said(objects, "train/vit/part.json")


def test_an_unfinished_cache(tmp_path, small_shards):
    """Eight rows in two shards: only the first of each view is committed, and a killed run left more."""
    found = create_cache(tmp_path / "cache", source={})
    assert problems(found) == []
    write_rows(found, rows=8)
    write_part(found, teacher_part(8), skip={(0, 1)})
    left = found.root / "train/vit/embedding/c/0/1/0"
    left.parent.mkdir()
    shutil.copy(found.root / "train/vit/embedding/c/0/0/0", left)
    (found.root / "train/later/embedding").mkdir(parents=True)
    (found.root / "train/later/embedding/zarr.json").write_text("{}")
    assert problems(found) == []
    committed = found.root / EMBEDDING
    committed.chmod(0o644)
    committed.write_bytes(committed.read_bytes()[:-1] + b"?")
    assert [finding.key for finding in problems(found)] == [EMBEDDING]
    committed.unlink()
    assert "No such file" in str(problems(found))


def test_a_finished_cache_that_was_never_sealed(objects):
    for name in ("0", "1"):
        (objects.root / f"seals/{name}.json").unlink()
    assert latest_seal(objects) is None
    assert [finding.key for finding in problems(objects)] == [
        f"train/{name}/part.json" for name in ("probe", "rows", "vit")
    ]


def test_a_sample_reads_whole_objects_and_always_the_same(tmp_path, small_shards):
    found = create_cache(tmp_path / "cache", source={})
    write_rows(found, rows=100)
    write_part(found, teacher_part(100))
    seal(found)
    keys = sorted(key for key in files_of(found) if "/c/" in key)
    for key in keys:
        (found.root / key).chmod(0o644)
        data = bytearray((found.root / key).read_bytes())
        data[0] ^= 1
        (found.root / key).write_bytes(data)
    first = [finding.key for finding in problems(found, sample=0.2)]
    assert [finding.key for finding in problems(found, sample=0.2)] == first
    assert 0.05 * len(keys) < len(first) < 0.4 * len(keys)
    assert [finding.key for finding in problems(found, sample=0.2, seed=1)] != first
    assert problems(found, sample=0.0) == []
    assert [finding.key for finding in problems(found)] == keys
    (found.root / keys[0]).write_bytes(b"")
    assert [finding.key for finding in problems(found, sample=0.0)] == keys[:1]


@pytest.mark.parametrize("sample", [-0.1, 1.1, float("nan")])
def test_a_sample_that_is_no_share(objects, sample):
    with pytest.raises(UsageError, match="is no share"):
        next(verify(objects, sample=sample))


@pytest.fixture
def nested(objects):
    """Folders within each other in a cache, more than calls can be."""
    folder = objects.root / "train"
    for _ in range(1200):
        folder /= "x"
        folder.mkdir()
    yield folder
    os.removedirs(folder)


def test_folders_deeper_than_calls_can_be(objects, nested):
    (found,) = problems(objects)
    assert str(found) == "train" + "/x" * 35 + " is a folder deeper than any of a cache"
    before = sum(objects.sizes())
    (nested / "file").write_bytes(b"1234")
    assert sum(objects.sizes()) == before + 4
    (nested / "file").unlink()


def test_a_folder_that_cannot_be_listed(objects, monkeypatch):
    def scandir(folder):
        if folder == objects.root / "train/vit":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return listed(folder)

    listed = os.scandir
    monkeypatch.setattr(os, "scandir", scandir)
    assert "train/vit cannot be listed: Permission denied" in map(str, problems(objects))
