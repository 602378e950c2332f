"""Links out of the cache, and files that are none."""

import os
import shutil

import pytest

from tests.attacks.hostile import EMBEDDING, RECORD, Attack, check

SHARD = f"{EMBEDDING}/c/0/0/0"


def link(key):
    """The same bytes, outside, behind a symbolic link."""

    def build(root):
        outside = root.parent / f"{root.name}-outside"
        shutil.move(root / key, outside)
        (root / key).symlink_to(outside)

    return build


def pipe(key):
    def build(root):
        (root / key).unlink()
        os.mkfifo(root / key)

    return build


def folder(key):
    def build(root):
        (root / key).unlink()
        (root / key).mkdir()

    return build


def deep(root):
    """Folders within each other, deeper than any key."""
    folder = root / "train/vit"
    for _ in range(60):
        folder /= "x"
        folder.mkdir()


SEAL = "seals/0.json"
NO_CACHE = {"cache.json": "there is no cache"}
LINKED = [
    "cache.json",
    "seals",
    SEAL,
    "train",
    "train/vit",
    "train/vit/part.json",
    "train/vit/_commits",
    RECORD,
    EMBEDDING,
    f"{EMBEDDING}/c",
    SHARD,
    "train/probe/assets",
    "train/probe/assets/head.safetensors",
]
FILES = [key for key in LINKED if key.count(".") and not key.endswith("assets")] + [SHARD]
ATTACKS = [
    *(Attack(f"{key} is a link", link(key), key) for key in LINKED),
    *(Attack(f"{key} is a pipe", pipe(key), key, says=NO_CACHE.get(key, "")) for key in FILES),
    *(Attack(f"{key} is a folder", folder(key), key, says=NO_CACHE.get(key, "")) for key in FILES if key != SEAL),
    Attack("sixty folders within each other", deep, "train/vit" + "/x" * 34, is_read=True),
]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_links(attack, good, tmp_path):
    check(attack, good, tmp_path / "cache")
