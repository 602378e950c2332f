"""Commit records and seals that lead elsewhere or claim what is not there; every hash in them is right."""

import pytest

from tests.attacks.hostile import EMBEDDING, RECORD, Attack, change, check, value_of, write

SEAL = "seals/0.json"


def payload(name, value):
    return lambda root: change(root, RECORD, "objects", 0, name, to=value)


def record(name, value):
    return lambda root: change(root, RECORD, name, to=value)


def entry(name, value):
    return lambda root: change(root, SEAL, "objects", 0, name, to=value)


def sealed(name, value):
    return lambda root: change(root, SEAL, name, to=value)


def many(root, key, count):
    """A valid list of far more objects than there are."""
    value = value_of(root, key)
    first = value["objects"][0]
    write(
        root, key, {**value, "objects": [{**first, "key": f"{first['key']}-{number:09d}"} for number in range(count)]}
    )


ATTACKS = [
    Attack("key of another array", payload("key", "train/vit/valid/c/0/0"), RECORD),
    Attack("key of another split", payload("key", "test/vit/embedding/c/0/0/0"), RECORD),
    Attack("key that leads out", payload("key", "../../etc/passwd"), RECORD),
    Attack("absolute key", payload("key", "/etc/passwd"), RECORD),
    Attack("key with NUL", payload("key", "train\0/vit"), RECORD),
    Attack("key that is a number", payload("key", 7), RECORD),
    Attack("more bytes than there are", payload("bytes", 2**40), RECORD),
    Attack("negative bytes", payload("bytes", -1), RECORD),
    Attack("boolean bytes", payload("bytes", True), RECORD),
    Attack("no inner chunks", payload("inner_crc32c", []), RECORD),
    Attack("a million inner chunks", payload("inner_crc32c", [0] * 90_000), RECORD),
    Attack("inner checksum beyond 32 bits", payload("inner_crc32c", [2**40]), RECORD),
    Attack("another inner checksum", payload("inner_crc32c", [1]), EMBEDDING),
    Attack("another view", record("view", 1), RECORD),
    Attack("another shard", record("shard", 2**40), RECORD),
    Attack("other rows", record("rows", [0, 2**40]), RECORD),
    Attack("another recipe", record("recipe_id", "0" * 64), RECORD),
    Attack("unknown reason", record("invalid", {"__class__": 1}), RECORD),
    Attack("no objects", record("objects", []), RECORD),
    Attack("objects that are none", record("objects", "train"), RECORD),
    Attack("a list as record", lambda root: write(root, RECORD, []), RECORD),
    Attack(
        "record of a shard that cannot be",
        lambda root: write(root, "train/vit/_commits/00000-9999999.json", {}),
        "train/vit/_commits/00000-9999999.json",
    ),
    Attack(
        "record with a number of a thousand digits",
        lambda root: write(root, f"train/vit/_commits/00000-{'9' * 200}.json", {}),
        f"train/vit/_commits/00000-{'9' * 200}.json",
    ),
    Attack("sealed key that leads out", entry("key", "../../etc/passwd"), SEAL),
    Attack("sealed key with NUL", entry("key", "a\0b"), SEAL),
    Attack("sealed bytes beyond all", entry("bytes", 2**50), SEAL),
    Attack("sealed part that leads out", sealed("parts", ["../train"]), SEAL),
    Attack("sealed part of three names", sealed("parts", ["train/vit/embedding"]), SEAL),
    Attack("sealed part that is not there", sealed("parts", ["train/other"]), SEAL, says="train/other"),
    Attack("a seal of nothing", sealed("parts", []), SEAL, says="not all listed"),
    Attack("a seal before the first", sealed("previous", "0" * 64), SEAL, is_read=True),
    Attack("a seal of another number", sealed("number", 1), SEAL),
    Attack("a seal that is boolean", sealed("number", False), SEAL),
    Attack("the same object twice", lambda root: change(root, SEAL, "objects", to=twice(root)), SEAL),
    Attack("50 MB of sealed objects", lambda root: many(root, SEAL, 250_000), SEAL),
    Attack("a record of 50 MB", lambda root: many(root, RECORD, 250_000), RECORD),
    Attack("seal 999,999,999", lambda root: write(root, "seals/999999999.json", {}), "seals/999999999.json"),
]


def twice(root):
    objects = value_of(root, SEAL)["objects"]
    return [objects[0], *objects]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_records_and_seals(attack, good, tmp_path):
    check(attack, good, tmp_path / "cache")
