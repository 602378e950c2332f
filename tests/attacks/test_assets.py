"""Heads and tokenizers: data files that other libraries parse."""

import hashlib
import os

import numpy as np
import pytest

from featurecache.errors import CorruptCacheError
from featurecache.inputs import ImageInput
from featurecache.store.reader import open_cache
from pipelines.load import teacher_input
from tests.attacks.hostile import CLASSES, DIM, Attack, change, check, head_of, read_all, write

HEAD = "train/probe/assets/head.safetensors"
TOKENIZER = "train/vit/assets/tokenizer.json"


def enormous(root):
    """A sparse file of 2 GiB, and part.json says so."""
    with (root / TOKENIZER).open("wb") as file:
        os.truncate(file.fileno(), 2**31)
    asset = {"tokenizer.json": {"bytes": 2**31, "sha256": "0" * 64}}
    change(root, "train/vit/part.json", "assets", to=asset)


ATTACKS = [
    Attack("another head", lambda root: write(root, HEAD, b"\x80\x04pickle"), HEAD),
    Attack("another tokenizer", lambda root: write(root, TOKENIZER, b"[]"), TOKENIZER),
    Attack("a tokenizer of 50 MB", lambda root: write(root, TOKENIZER, b"[" * 50 * 2**20), TOKENIZER),
    Attack("a tokenizer of 2 GiB", enormous, TOKENIZER),
    Attack("no head", lambda root: (root / HEAD).unlink(), HEAD),
    Attack(
        "an asset that nothing names",
        lambda root: write(root, "train/vit/assets/evil.pkl", b"cos\nsystem\n(S'true'\ntR."),
        "train/vit/assets/evil.pkl",
        is_read=True,
    ),
]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_assets(attack, good, tmp_path):
    check(attack, good, tmp_path / "cache")


def put(root, part, name, data):
    """An asset that part.json agrees to."""
    write(root, f"train/{part}/assets/{name}", data)
    value = {name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}}
    change(root, f"train/{part}/part.json", "assets", to=value)


GOOD = head_of(np.ones((CLASSES, DIM), "<f4"), np.zeros(CLASSES, "<f4"))


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"\x80\x04pickle?",
        (2**63).to_bytes(8, "little") + b"{}",
        (100).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"{}",
        GOOD[:-1],
        GOOD + b"\0",
        GOOD.replace(b"F32", b"F99"),
        GOOD.replace(b"[2, 4]", b"[4, 4]"),
        GOOD.replace(b"weight", b"weighs"),
        head_of(np.ones((CLASSES, DIM + 1), "<f4"), np.zeros(CLASSES, "<f4")),
        head_of(np.ones((CLASSES, DIM), "<f4"), np.zeros(CLASSES + 1, "<f4")),
        head_of(np.ones(DIM, "<f4"), np.zeros(CLASSES, "<f4")),
    ],
)
def test_a_head_that_part_json_agrees_to(head, good, tmp_path):
    import shutil

    root = shutil.copytree(good, tmp_path / "cache")
    put(root, "probe", "head.safetensors", head)
    with pytest.raises(CorruptCacheError, match="train/probe"):
        read_all(root)


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"not JSON", b"\xff", b"[" * 100_000, b'{"model":{"type":"BPE","vocab":{},"merges":[["a"]]}}']
)
def test_a_tokenizer_that_part_json_agrees_to(data, good, tmp_path):
    import shutil

    root = shutil.copytree(good, tmp_path / "cache")
    put(root, "vit", "tokenizer.json", data)
    for facts in ({"kind": "text", "max_length": 8}, {"kind": "text"}, {"kind": "text", "max_length": -1}):
        change(root, "train/vit/part.json", "facts", "input", to=facts)
        cache = open_cache(root)
        with pytest.raises(CorruptCacheError, match=r"train/vit/assets/tokenizer\.json cannot be used"):
            teacher_input(cache, cache.split("train"))


@pytest.mark.parametrize("facts", [{}, {"kind": "image"}, {"kind": "audio"}, {"kind": "image", "size": []}])
def test_an_input_that_is_none(facts, good, tmp_path):
    import shutil

    root = shutil.copytree(good, tmp_path / "cache")
    change(root, "train/vit/part.json", "facts", "input", to=facts)
    cache = open_cache(root)
    with pytest.raises(CorruptCacheError, match=r"train/vit/part\.json"):
        teacher_input(cache, cache.split("train"))


@pytest.mark.parametrize(
    "lie",
    [
        {"size": 2**20},
        {"size": 224.5},
        {"size": True},
        {"crop_pct": 1e-9},
        {"crop_pct": "1"},
        {"mean": [1e308, 0, 0]},
        {"mean": [[]] * 3},
        {"std": [1, 0, 1]},
        {"std": [1] * 1000},
        {"interpolation": "lanczos"},
        {"crop_mode": None},
        {"kind": "image", "evil": 1},
    ],
)
def test_an_image_input_that_no_network_has(lie, good, tmp_path):
    import shutil

    root = shutil.copytree(good, tmp_path / "cache")
    change(root, "train/vit/part.json", "facts", "input", to={**ImageInput(size=8).to_json(), **lie})
    cache = open_cache(root)
    with pytest.raises(CorruptCacheError, match=r"train/vit/part\.json has an input that is none"):
        teacher_input(cache, cache.split("train"))
