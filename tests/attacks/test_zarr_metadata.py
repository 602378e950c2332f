"""Metadata that Zarr would believe: pickles, phantoms, shapes without data."""

import json

import pytest

from tests.attacks.hostile import EMBEDDING, MEGABYTE, Attack, check, write

V2_PICKLE = json.dumps(
    {
        "zarr_format": 2,
        "shape": [1],
        "chunks": [1],
        "dtype": "|O",
        "fill_value": None,
        "order": "C",
        "compressor": None,
        "filters": [{"id": "vlen-utf8"}, {"id": "pickle"}],
    }
).encode()
BOMB = b"cos\nsystem\n(S'touch owned'\ntR."


def v2_beside(root):
    write(root, f"{EMBEDDING}/.zarray", V2_PICKLE)
    write(root, f"{EMBEDDING}/0", BOMB)


def v2_in_place(root):
    v2_beside(root)
    (root / EMBEDDING / "zarr.json").unlink()


def metadata(**changes):
    def build(root):
        path = root / EMBEDDING / "zarr.json"
        path.write_text(json.dumps({**json.loads(path.read_bytes()), **changes}, separators=(",", ":"), sort_keys=True))

    return build


def phantom(root):
    member = json.loads((root / EMBEDDING / "zarr.json").read_bytes())
    consolidated = {"kind": "inline", "must_understand": False, "metadata": {"phantom": member}}
    value = {**json.loads((root / "zarr.json").read_bytes()), "consolidated_metadata": consolidated}
    (root / "zarr.json").write_text(json.dumps(value))


def plant_array(root):
    write(root, "train/vit/phantom/zarr.json", (root / EMBEDDING / "zarr.json").read_bytes())


HERE = f"{EMBEDDING}/zarr.json"
ATTACKS = [
    Attack("v2 array of pickles beside an array", v2_beside, f"{EMBEDDING}/.zarray", is_read=True),
    Attack("v2 array of pickles in its place", v2_in_place, HERE),
    Attack("shape 2**62 in zarr.json", metadata(shape=[1, 2**62, 4]), HERE),
    Attack("boolean shape", metadata(shape=[True, 10, 4]), HERE),
    Attack("unknown codec", metadata(codecs=[{"name": "pickle"}]), HERE),
    Attack("data type of objects", metadata(data_type="object"), HERE),
    Attack(
        "zero as chunk shape", metadata(chunk_grid={"name": "regular", "configuration": {"chunk_shape": [0]}}), HERE
    ),
    Attack("storage transformers", metadata(storage_transformers=[{"name": "evil"}]), HERE),
    Attack("50 MB zarr.json", lambda root: write(root, HERE, b" " * 50 * MEGABYTE), HERE),
    Attack("zarr.json nested 100,000 deep", lambda root: write(root, HERE, b"[" * 100_000), HERE),
    Attack("phantom in consolidated metadata", phantom, "zarr.json", is_read=True),
    Attack("phantom array", plant_array, "train/vit/phantom/zarr.json", is_read=True),
]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_zarr_metadata(attack, good, tmp_path):
    check(attack, good, tmp_path / "cache")
