import json
import time

import pytest

from featurecache.errors import CorruptCacheError
from featurecache.store.validate import MAX_DEPTH, check_count, check_text, read_json


def put(objects, data):
    path = objects.root / "x.json"
    path.write_bytes(data)
    return "x.json"


def test_exactly_the_limit_is_read_and_one_byte_more_is_not(objects):
    key = put(objects, b'"' + b"a" * (2**20 - 2) + b'"')
    assert read_json(objects, key) == "a" * (2**20 - 2)
    put(objects, b'"' + b"a" * (2**20 - 1) + b'"')
    with pytest.raises(CorruptCacheError, match="larger than 1,048,576 bytes"):
        read_json(objects, key)


def test_fifty_megabytes_are_refused_without_being_read(objects):
    key = put(objects, b"[" + b"1," * (25 * 2**20) + b"1]")
    began = time.monotonic()
    with pytest.raises(CorruptCacheError):
        read_json(objects, key)
    assert time.monotonic() - began < 0.2


def nested(depth):
    return b'{"a":' * (depth // 2) + b"[" * (depth - depth // 2) + b"]" * (depth - depth // 2) + b"}" * (depth // 2)


def test_depth(objects):
    assert read_json(objects, put(objects, nested(MAX_DEPTH))) == json.loads(nested(MAX_DEPTH))
    for depth in (MAX_DEPTH + 1, 900, 100_000):
        with pytest.raises(CorruptCacheError):
            read_json(objects, put(objects, nested(depth)))


def test_brackets_in_text_hide_no_depth_and_count_for_none(objects):
    with pytest.raises(CorruptCacheError, match="nested more than 32 deep"):
        read_json(objects, put(objects, b'["' + b"]" * 500 + b'",' + nested(500) + b"]"))
    assert read_json(objects, put(objects, b'["' + b"[" * 500 + b'"]')) == ["[" * 500]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"{}x",
        b"NaN",
        b"[Infinity]",
        b'{"a":-Infinity}',
        b"1" * 5000,
        b'"\xff"',
        b"\xef\xbb\xbf{}",
        "[1]".encode("utf-16"),
    ],
)
def test_what_is_not_json(objects, data):
    with pytest.raises(CorruptCacheError, match=r"x\.json is not JSON"):
        read_json(objects, put(objects, data))


def test_missing(objects):
    with pytest.raises(CorruptCacheError, match=r"cannot read x\.json"):
        read_json(objects, "x.json")


def test_counts_and_texts():
    assert (check_count(0), check_count(2**48 - 1), check_text("")) == (0, 2**48 - 1, "")
    for value in (-1, 2**48, True, 1.0, "1", None, [], 10**400):
        with pytest.raises(ValueError, match="whole number"):
            check_count(value)
    for value in (1, None, b"a", ["a"]):
        with pytest.raises(TypeError, match="not text"):
            check_text(value)
