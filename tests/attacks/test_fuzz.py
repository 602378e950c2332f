"""Anything at all in place of a value, a byte or a file: refused, or the right values are read."""

import json
import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from featurecache.errors import FeatureCacheError
from tests.attacks.hostile import EMBEDDING, RECORD, right_values, value_of, write
from tests.attacks.reading import described, findings, read_plainly
from tests.store.small_parts import signed
from tests.store.test_layout import HOSTILE, paths_of, replaced

JSON = ["cache.json", "train/vit/part.json", "train/rows/part.json", "train/probe/part.json", RECORD, "seals/0.json"]
ODD = st.sampled_from(
    [
        *(0, 1, -1, True, None, 1.5, 1e308, 2**31, 2**47, 2**53, 2**64, 10**400),
        *("", "..", "../x", "/", "a\0", "A", "\ud800", "float32", "int8", "topk:3", "rows", "train/rows"),
        *([], {}, [[]], [0, 2**47], [2**40] * 9, {"a": {}}),
    ]
)
FUZZ = settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@pytest.fixture(scope="module")
def attacked(good, tmp_path_factory):
    """A copy whose files are changed and put back."""
    return shutil.copytree(good, tmp_path_factory.mktemp("fuzz") / "cache")


def check(good, root, key, data):
    """With these bytes in place of a file: whatever is read is right, and nothing but our own errors is raised."""
    before = (root / key).read_bytes()
    try:
        write(root, key, data)
        told = findings(root)
        described(root)
        try:
            found = read_plainly(root)
        except FeatureCacheError:
            found = {}
            assert told
        right = right_values(good)
        assert all(found[name] == right[name] for name in found.keys() & right.keys())
        assert told or unsigned(data) == unsigned(before)
    finally:
        write(root, key, before)


def unsigned(data):
    """All that can be told of when the hash is right: not the time in the newest seal, above which nothing stands."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return data
    return {n: v for n, v in value.items() if n not in ("sealed", "sha256")} if isinstance(value, dict) else value


@pytest.mark.parametrize("key", JSON)
@given(data=st.data())
@FUZZ
def test_another_value(key, good, attacked, data):
    value = value_of(attacked, key)
    path = data.draw(st.sampled_from(sorted(paths_of(value), key=str)))
    check(good, attacked, key, signed(replaced(value, path, data.draw(ODD | HOSTILE))))


@pytest.mark.parametrize("key", JSON)
@given(data=st.data())
@FUZZ
def test_a_key_more_or_less(key, good, attacked, data):
    value = value_of(attacked, key)
    objects = [path for path in paths_of(value) if isinstance(at(value, path), dict) and at(value, path)]
    path = data.draw(st.sampled_from(sorted(objects, key=str)))
    inner = dict(at(value, path))
    if data.draw(st.booleans()):
        del inner[data.draw(st.sampled_from(sorted(inner)))]
    else:
        inner[data.draw(st.text(max_size=9))] = data.draw(ODD)
    check(good, attacked, key, signed(replaced(value, path, inner)))


def at(value, path):
    for name in path:
        value = value[name]
    return value


@pytest.mark.parametrize("key", [*JSON, f"{EMBEDDING}/zarr.json", f"{EMBEDDING}/c/0/0/0"])
@given(data=st.data())
@FUZZ
def test_other_bytes(key, good, attacked, data):
    before = (attacked / key).read_bytes()
    start = data.draw(st.integers(0, len(before)))
    stop = data.draw(st.integers(start, len(before)))
    check(good, attacked, key, before[:start] + data.draw(st.binary(max_size=20)) + before[stop:])
