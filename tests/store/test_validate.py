import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurecache.errors import CorruptCacheError, UsageError
from featurecache.store.objects import MAX_JSON_BYTES
from featurecache.store.validate import (
    MAX_DEPTH,
    _depth,
    _outside_strings,
    check_count,
    check_hash,
    check_text,
    parse_json,
    read_json,
    sign,
)
from tests.store.small_parts import signed


def put(objects, data):
    path = objects.root / "x.json"
    path.write_bytes(data)
    return "x.json"


def test_what_is_signed_is_read_and_carries_its_hash(objects):
    value = {"b": [1, -0.5, None, True], "ä": "\u2028", "a": {"sha256": "inner"}}
    data = sign(value)
    assert data == signed(value)
    assert read_json(objects, put(objects, data)) == value


def test_exactly_the_limit_is_read_and_one_byte_more_is_not(objects):
    frame = len(sign({"a": ""}))
    key = put(objects, sign({"a": "x" * (MAX_JSON_BYTES - frame)}))
    assert len(read_json(objects, key)["a"]) == MAX_JSON_BYTES - frame
    put(objects, sign({"a": "x" * (MAX_JSON_BYTES - frame + 1)}))
    with pytest.raises(CorruptCacheError, match="larger than 1,048,576 bytes"):
        read_json(objects, key)


def test_no_byte_can_change(objects):
    data = sign({"format": 1, "text": 'ä\\"', "numbers": [10, 0.25, 1e300], "none": None})
    for at in range(len(data)):
        for change in (1, 2, 4, 8, 16, 32, 64, 128):
            put(objects, data[:at] + bytes([data[at] ^ change]) + data[at + 1 :])
            with pytest.raises(CorruptCacheError, match=r"x\.json"):
                read_json(objects, "x.json")
    for length in range(len(data)):
        put(objects, data[:length])
        with pytest.raises(CorruptCacheError, match=r"x\.json"):
            read_json(objects, "x.json")


@pytest.mark.parametrize(
    "data",
    [
        json.dumps(json.loads(signed({"a": 1}))).encode(),
        signed({"a": 1}) + b"\n",
        b'{"a":1}',
        b'{"a":1,"sha256":null}',
        signed({"a": 1}).replace(b"1", b"2", 1),
        b'{"a":1,"a":1' + signed({"a": 1})[6:],
        b"[]",
        b"1",
        b'{"a":1e999,"sha256":""}',
    ],
    ids=["spaces", "newline", "no hash", "null", "another value", "a name twice", "list", "number", "infinite"],
)
def test_the_same_values_in_other_bytes_are_refused(objects, data):
    with pytest.raises(CorruptCacheError, match=r"x\.json"):
        read_json(objects, put(objects, data))


@pytest.mark.parametrize(
    "number",
    [
        b"9007199254740992",
        b"-9007199254740992",
        b"[1,99999999999999999999]",
        *(b"1" * digits for digits in (4000, 4001, 4300, 4500, 2**20)),
        b"[-" + b"9" * 4200 + b"]",
    ],
    ids=lambda number: f"{len(number)} bytes",
)
def test_whole_numbers_beyond(number):
    with pytest.raises(CorruptCacheError, match=r"beyond 2\*\*53"):
        parse_json(number, "x")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 2**53, -(2**53), "\ud800", [[[]]] * 9000])
def test_what_could_not_be_read_is_not_written(value):
    with pytest.raises(UsageError, match="cannot be kept as JSON"):
        sign({"a": value})


def test_fifty_megabytes_are_refused_without_being_read(objects):
    key = put(objects, b"[" + b"1," * (25 * 2**20) + b"1]")
    began = time.monotonic()
    with pytest.raises(CorruptCacheError):
        read_json(objects, key)
    assert time.monotonic() - began < 0.2


def nested(depth):
    return b'{"a":' * (depth // 2) + b"[" * (depth - depth // 2) + b"]" * (depth - depth // 2) + b"}" * (depth // 2)


def test_depth(objects):
    assert parse_json(nested(MAX_DEPTH), "x") == json.loads(nested(MAX_DEPTH))
    for depth in (MAX_DEPTH + 1, 900, 100_000):
        with pytest.raises(CorruptCacheError, match="nested more than 32 deep"):
            read_json(objects, put(objects, nested(depth)))


def test_depth_is_counted_before_anything_is_parsed(objects, monkeypatch):
    monkeypatch.setattr(json, "loads", lambda *_, **__: pytest.fail("parsed"))
    for start in (b"", b'["]]]]",', b'["\\\\",', b'["\\"[",'):
        with pytest.raises(CorruptCacheError, match="deep"):
            read_json(objects, put(objects, start + b"[" * 100_000))


@given(
    st.recursive(
        st.none() | st.text(alphabet='[]{}\\"a'), lambda each: st.lists(each) | st.dictionaries(st.text(), each)
    )
)
def test_depth_is_that_of_the_value(value):
    def depth(item):
        children = item.values() if isinstance(item, dict) else item if isinstance(item, list) else None
        return 0 if children is None else 1 + max(map(depth, children), default=0)

    assert _depth(_outside_strings(json.dumps(value).encode())) == depth(value)


def test_depth_across_blocks():
    data = b"[" * 20 + b'"' + b"]" * 3 * 2**20 + b'"' + b"," + b"[" * 10 + b"]" * 30
    assert _depth(_outside_strings(data)) == 30


def test_a_crowd_of_tiny_lists():
    with pytest.raises(CorruptCacheError, match="too many tiny values for its 1,050,001 bytes"):
        parse_json(b"[" + b",".join([b"[]"] * 350_000) + b"]", "x")
    with pytest.raises(CorruptCacheError, match="too many tiny values"):
        parse_json(b"[" + b"1," * (2**21 + 1) + b"1]", "x")


def test_a_million_names_are_no_crowd():
    assert len(parse_json(json.dumps(["ab"] * 1_000_000).encode(), "x")) == 1_000_000


@pytest.mark.parametrize(
    "number", ["9007199254740991", "-9007199254740991", "0.12345678901234567", "1e300", "12345678901234567.5"]
)
def test_numbers_that_every_reader_has_the_same(number):
    assert parse_json(f'{{"1234567890123456789":[{number},{number}]}}'.encode(), "x")["1234567890123456789"][
        1
    ] == float(number)


def test_brackets_in_text_hide_no_depth_and_count_for_none(objects):
    with pytest.raises(CorruptCacheError, match="nested more than 32 deep"):
        read_json(objects, put(objects, b'["' + b"]" * 500 + b'",' + nested(500) + b"]"))
    assert parse_json(b'["' + b"[" * 500 + b'"]', "x") == ["[" * 500]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"{}x",
        b"NaN",
        b"[Infinity]",
        b'{"a":-Infinity}',
        b'{"a":1,"a":2}',
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


def test_hashes():
    assert check_hash("0123456789abcdef" * 4) == "0123456789abcdef" * 4
    for value in ("", "0" * 63, "0" * 65, "A" * 64, "g" * 64, "\u0660" * 64):
        with pytest.raises(ValueError, match="SHA-256"):
            check_hash(value)
    with pytest.raises(TypeError):
        check_hash(1)
