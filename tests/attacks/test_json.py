"""JSON that is deep, large, dense, or not quite JSON, in every place where JSON is read."""

import pytest

from tests.attacks.hostile import MEGABYTE, RECORD, Attack, check, value_of, write
from tests.store.small_parts import signed

PLACES = ["cache.json", "train/vit/part.json", RECORD, "seals/0.json"]


def dense(root, key):
    """As many lists as fit into what is read: of the size limit of part.json, or of all others."""
    size = (16 if key.endswith("part.json") else 1) * MEGABYTE
    write(root, key, b"[" + b"[]," * ((size - 10) // 3) + b"1]")


def numbers(root, key):
    """As many numbers as fit, in an otherwise good file."""
    size = (16 if key.endswith("part.json") else 1) * MEGABYTE
    write(root, key, {**value_of(root, key), "more": [300] * ((size - 20_000) // 4), "format": 9})


def variants(key):
    good = lambda root: signed(value_of(root, key))  # noqa: E731
    return {
        "nested 100,000 deep": lambda root: write(root, key, b"[" * 100_000 + b"]" * 100_000),
        "objects nested 100,000 deep": lambda root: write(root, key, b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
        "50 MB of text": lambda root: write(root, key, b'{"a":"' + b"x" * 50 * MEGABYTE + b'"}'),
        "50 MB of lists": lambda root: write(root, key, b"[" + b"[]," * (50 * MEGABYTE // 3) + b"1]"),
        "all lists that fit": lambda root: dense(root, key),
        "all numbers that fit": lambda root: numbers(root, key),
        "empty": lambda root: write(root, key, b""),
        "null": lambda root: write(root, key, b"null"),
        "a number": lambda root: write(root, key, b"7"),
        "a number of a million digits": lambda root: write(root, key, b"1" * (MEGABYTE - 1)),
        "NaN": lambda root: write(root, key, b'{"format":NaN}'),
        "Infinity": lambda root: write(root, key, b'{"format":-Infinity}'),
        "not UTF-8": lambda root: write(root, key, good(root).replace(b'"', b'"\xff', 1)),
        "UTF-16": lambda root: write(root, key, good(root).decode().encode("utf-16")),
        "byte order mark": lambda root: write(root, key, b"\xef\xbb\xbf" + good(root)),
        "half a surrogate pair": lambda root: write(root, key, b'{"format":"\\ud800","sha256":""}'),
        "comment": lambda root: write(root, key, b"/* */" + good(root)),
        "white space": lambda root: write(root, key, good(root) + b" "),
        "a name twice": lambda root: write(root, key, b'{"format":0,' + good(root)[1:]),
        "no hash": lambda root: write(root, key, good(root)[: good(root).rindex(b',"sha256')] + b"}"),
        "a pickle": lambda root: write(root, key, b"cos\nsystem\n(S'true'\ntR."),
    }


ATTACKS = [Attack(f"{key}: {name}", build, key) for key in PLACES for name, build in variants(key).items()]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_json(attack, good, tmp_path):
    check(attack, good, tmp_path / "cache")
