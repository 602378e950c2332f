"""Every byte, every length and every file of a small cache: `verify` tells of it, and no reader gives wrong values."""

import contextlib
import os

import numpy as np
import pytest

from featurecache.errors import CorruptCacheError, FeatureCacheError, IncompleteError
from featurecache.store.commit import read_record
from featurecache.store.part_reader import PartReader
from featurecache.store.parts import check_array, read_part
from featurecache.store.reader import open_cache
from featurecache.store.seals import read_seal
from featurecache.store.writer import check_version
from tests.store.tiny_cache import everything, files_of, problems

UNTOUCHED = -1
UNSEEN = {"seals/0.json"}
"""What no reader has a reason to touch; nor has it one to touch the metadata of groups."""


@pytest.fixture
def objects(tiny):
    return tiny


def groups_of(keys):
    """Files that can be damaged all at once, and each is still told of."""
    described = [key for key in keys if key.endswith("/part.json")]
    arrays = [key for key in keys if key.endswith("/zarr.json") and key.count("/") == 3]
    counted = [
        key for key in keys if key.startswith("seals/") or "/_commits/" in key or key in ("cache.json", "zarr.json")
    ]
    return described, counted, arrays, [key for key in keys if key not in described + counted + arrays]


def touch(root, key):
    """What touches one file, as a reader does."""
    cache = open_cache(root)
    if key.startswith("seals/"):
        return cache.seal
    if key in ("cache.json", "zarr.json") or key.endswith("/part.json"):
        return cache.split("train")
    parts = {part.prefix: part for part in cache.all_parts()}
    part = parts.get(key.rsplit("/", key.count("/") - 1)[0])
    if part is None:
        return None
    rest = key.removeprefix(f"{part.prefix}/").split("/")
    if rest[0] == "assets":
        return cache.asset(part, rest[1])
    reader = PartReader(cache.objects, part)
    if rest[0] == "_commits":
        return reader.records
    return reader.whole(rest[0]).tobytes() if len(rest) > 1 else None


def is_group(key):
    return key.endswith("zarr.json") and key.count("/") < 3


def is_seen(key, at, good):
    """Whether a reader that touches a file looks at this byte of it."""
    if key in UNSEEN or is_group(key):
        return False
    if "/c/" not in key:
        return True
    return at < len(good[key]) - 20  # the index is for other readers


def check_damage(objects, good, changes, *, what):
    """`changes`: key -> (other bytes, an offset in them): `verify` tells of each, and whoever touches it fails."""
    for key, (data, at) in changes.items():
        (objects.root / key).write_bytes(data)
        if at != UNTOUCHED and is_seen(key, at, good):
            with pytest.raises(FeatureCacheError):
                touch(objects.root, key)
    told = {finding.key for finding in problems(objects)}
    assert changes.keys() <= told, (what, changes.keys() - told)
    for key in changes:
        (objects.root / key).write_bytes(good[key])


def read_one(objects, parts, key):
    """What both `verify` and readers call for one JSON file."""
    if key == "cache.json":
        return check_version(objects)
    if key.startswith("seals/"):
        return read_seal(objects, int(key[6:-5]))
    part = parts[key.rsplit("/", key.count("/") - 1)[0]]
    if key.endswith("/part.json"):
        return read_part(objects, part.prefix)
    if "/_commits/" in key:
        return read_record(objects, part, part.shards()[0])
    return check_array(objects, part, part.array(key.split("/")[2]))


def test_every_byte_of_every_file(objects):
    """All of them: of JSON by the functions that read it, of the rest by `verify` and a reader; see the next test."""
    keys = files_of(objects)
    good = {key: (objects.root / key).read_bytes() for key in keys}
    parts = {f"train/{name}": read_part(objects, f"train/{name}") for name in ("rows", "vit", "probe")}
    singly = [key for key in keys if key.endswith(".json") and not is_group(key)]
    flipped = 0
    for key in singly:
        with (objects.root / key).open("r+b", buffering=0) as file:
            for at, byte in enumerate(good[key]):
                os.pwrite(file.fileno(), bytes([byte ^ (1 + at % 255)]), at)
                with pytest.raises(CorruptCacheError):
                    read_one(objects, parts, key)
                os.pwrite(file.fileno(), bytes([byte]), at)
                flipped += 1
    others = [key for key in keys if key not in singly]
    for at in range(max(len(good[key]) for key in others)):
        flipped += check_flips(objects, good, others, at)
    assert flipped == sum(map(len, good.values()))


def check_flips(objects, good, keys, at):
    """Another byte at one place of several files; returns how many have that place."""
    flipped = {key: good[key][:at] + bytes([good[key][at] ^ (1 + at % 255)]) for key in keys if at < len(good[key])}
    check_damage(objects, good, {key: (data + good[key][at + 1 :], at) for key, data in flipped.items()}, what=at)
    return len(flipped)


def test_bytes_of_json_end_to_end(objects):
    keys = files_of(objects)
    good = {key: (objects.root / key).read_bytes() for key in keys}
    for group in groups_of(keys):
        for at in {*range(0, max(len(good[key]) for key in group), 97), *(len(good[key]) - 1 for key in group)}:
            check_flips(objects, good, group, at)


def test_truncation_and_growth(objects):
    keys = files_of(objects)
    good = {key: (objects.root / key).read_bytes() for key in keys}
    for group in groups_of(keys):
        longest = max(len(good[key]) for key in group)
        # JSON that ends early is no JSON, whatever the length (tests/store/test_validate.py tries them all)
        for length in range(0, longest, 1 if longest < 200 else 211):
            place = 0 if length % 7 == 0 else UNTOUCHED  # a reader tries every seventh, since opening takes longest
            changes = {key: (good[key][:length], place) for key in group if length < len(good[key])}
            check_damage(objects, good, changes, what=length)
        check_damage(objects, good, {key: (good[key] + b"\0", 0) for key in group}, what="+1")


def test_deletion(objects):
    right = everything(objects.root)
    for key in files_of(objects):
        data = (objects.root / key).read_bytes()
        (objects.root / key).unlink()
        told = problems(objects)
        assert told, key
        try:
            found = everything(objects.root)
        except FeatureCacheError:
            found = None
        if key == "seals/1.json":  # nothing is left that says there was a second seal, but a part that none covers
            assert [str(finding) for finding in told] == [
                "train/probe/part.json is of a complete part that no seal covers: run the command that made it again"
            ]
        else:
            assert found in (None, right), key
            assert key in {finding.key for finding in told} | {str(finding).split()[-1] for finding in told}, key
        (objects.root / key).write_bytes(data)
    assert not problems(objects)


def test_a_reader_gives_the_right_values_or_none(objects):
    right = everything(objects.root)
    rng = np.random.default_rng(0)
    for key in files_of(objects):
        good = (objects.root / key).read_bytes()
        for at in rng.choice(len(good), min(len(good), 4), replace=False):
            data = bytearray(good)
            data[at] ^= int(rng.integers(1, 256))
            (objects.root / key).write_bytes(data)
            with contextlib.suppress(CorruptCacheError, IncompleteError):
                assert everything(objects.root) == right, (key, at)
        (objects.root / key).write_bytes(good)
