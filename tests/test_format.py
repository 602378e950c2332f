"""A cache read by what `docs/format.md` says: with zarr-python, and with numpy and json; nothing of the project."""

import hashlib
import json
import struct
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
import zarr

ROWS, VIEWS = 2500, 2


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """(root, what the arrays should hold, keys): written by the project, read below without it."""
    from featurecache.store.layout import REASON, VALID
    from featurecache.store.seals import seal
    from featurecache.store.writer import create_cache
    from featurecache.types import ArraySpec
    from tests.store.small_parts import keys_of, teacher_part, write_part, write_rows

    objects = create_cache(tmp_path_factory.mktemp("written"), source={"data": "here"})
    write_rows(objects, rows=ROWS)
    wide = ArraySpec("embedding", "float16", (700,), ("feature",))
    counts = ArraySpec("counts", "uint64")
    model = write_part(objects, teacher_part(ROWS, views=(0, VIEWS), arrays=(wide, counts, VALID, REASON), dim=700))
    seal(objects)
    return objects.root, model, keys_of(ROWS)


def test_with_zarr_alone(written):
    root, model, keys = written
    group = zarr.open_group(root, mode="r")
    for name, expected in model.items():
        array = group[f"train/vit/{name}"]
        assert (array.shape, array.dtype) == (expected.shape, expected.dtype)
        assert array.metadata.dimension_names[:2] == ("view", "sample")
        np.testing.assert_array_equal(array[:], expected)
    rows = group["train/rows"]
    text, offsets = rows["key_text"][:].tobytes(), rows["key_offsets"][:]
    assert [text[start:stop].decode() for start, stop in offsets] == keys
    assert rows["key_hash"][3].tobytes() == hashlib.sha256(keys[3].encode()).digest()[:16]


def read_shard(path, rows, row_shape, dtype, inner_rows):
    """The rows of one shard file: the index at its end says where each inner chunk is."""
    data = path.read_bytes()
    row_bytes = int(np.prod(row_shape, dtype=int)) * np.dtype(dtype).itemsize
    slots = rows // inner_rows
    index, (checksum,) = data[-slots * 16 - 4 : -4], struct.unpack("<I", data[-4:])
    assert google_crc32c.value(index) == checksum
    chunks = []
    for slot in range(slots):
        offset, length = struct.unpack_from("<QQ", index, slot * 16)
        if offset == 2**64 - 1:
            continue
        assert (offset, length) == (len(chunks) * inner_rows * row_bytes, inner_rows * row_bytes)
        chunks.append(np.frombuffer(data[offset : offset + length], np.dtype(dtype).newbyteorder("<")))
    return np.concatenate(chunks).reshape(-1, *row_shape), chunks


def test_with_numpy_and_json_alone(written):
    root, model, _ = written
    assert json.loads((root / "cache.json").read_bytes())["version"] == 1
    part = json.loads((root / "train/vit/part.json").read_bytes())
    identity = json.dumps(part["identity"], sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert hashlib.sha256(identity.encode()).hexdigest() == part["recipe_id"]
    first, stop = part["views"]
    found = {
        array["name"]: np.zeros((stop - first, part["rows"], *array["shape"]), array["dtype"])
        for array in part["arrays"]
    }
    records = sorted((root / "train/vit/_commits").iterdir())
    assert len(records) == VIEWS * 3
    for path in records:
        record = json.loads(path.read_bytes())
        assert record["recipe_id"] == part["recipe_id"]
        begin, end = record["rows"]
        for array, payload in zip(part["arrays"], record["objects"], strict=True):
            shard = root / payload["key"]
            assert shard.stat().st_size == payload["bytes"]
            assert hashlib.sha256(shard.read_bytes()).hexdigest() == payload["sha256"]
            values, chunks = read_shard(
                shard, part["rows_per_shard"], array["shape"], array["dtype"], array["inner_rows"]
            )
            assert [google_crc32c.value(chunk.tobytes()) for chunk in chunks] == payload["inner_crc32c"]
            found[array["name"]][record["view"] - first, begin:end] = values[: end - begin]
    for name, expected in model.items():
        np.testing.assert_array_equal(found[name], expected)


def test_the_seal_is_a_list_for_sha256sum(written):
    root, _, _ = written
    value = json.loads((root / "seals/0.json").read_bytes())
    listed = {entry["key"]: entry["sha256"] for entry in value["objects"]}
    files = [path for path in Path(root).rglob("*") if path.is_file() and path.parent.name != "seals"]
    assert listed == {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
