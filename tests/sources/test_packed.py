"""Keys and labels that take little memory, and what opening a source keeps and needs."""

import io
import pickle
import tarfile
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurecache.errors import SourceError
from featurecache.sources import TarShards, TextFiles, packed
from featurecache.sources.listing import LabelColumn, check_keys, find_repeated
from featurecache.sources.packed import Keys, Packer, narrow
from featurecache.types import NO_LABEL
from tests.sources.make_data import write_jsonl

WORDS = ["one", "", "größer", "four", "\ud800"]


@given(st.lists(st.text()), st.slices(12), st.integers(-12, 11))
def test_keys_are_a_sequence_like_a_list(words, part, index):
    keys = Keys.of(words)
    assert list(keys) == words and keys == words and len(keys) == len(words)
    assert keys[part] == words[part] and list(keys[part]) == words[part]
    assert pickle.loads(pickle.dumps(keys)) == keys
    if -len(words) <= index < len(words):
        assert keys[index] == keys[np.int64(index)] == words[index]
    else:
        with pytest.raises(IndexError):
            keys[index]


def test_equality():
    keys = Keys.of(WORDS)
    assert keys == WORDS and keys == tuple(WORDS) and keys == Keys.of(WORDS) and keys[1:] == WORDS[1:]
    assert keys != WORDS[:-1] and keys != [*WORDS[:-1], "x"] and keys != "one" and keys != Keys.of(["onegrößer"])
    assert Keys.of(["ab", "c"]) != Keys.of(["a", "bc"])
    assert repr(keys) == "Keys(['one', '', 'größer'], ...)" and repr(Keys.of([])) == "Keys([])"
    assert "four" in keys and keys.index("four") == 3


def test_a_walk_over_several_blocks(monkeypatch):
    monkeypatch.setattr(packed, "_BLOCK", 3)
    assert list(Packer(b"%d" % n for n in range(10)).pack()) == [b"%d" % n for n in range(10)]


def test_a_part_leaves_the_rest_behind():
    keys = Keys.of(f"key {number:06}" for number in range(10_000))
    assert len(pickle.dumps(keys[5000:5010])) < 600


@pytest.mark.parametrize(
    ("values", "dtype"),
    [([], "int16"), ([-1, 32767], "int16"), ([32768], "int32"), ([-(2**31)], "int32"), ([2**31], "int64")],
)
def test_narrow(values, dtype):
    found = narrow(np.array(values, np.int64))
    assert found.dtype == dtype and found.tolist() == values


def test_repeated_keys_are_found():
    words = [f"key {number}" for number in range(500)]
    assert find_repeated(Keys.of(words)) is None and find_repeated(Keys.of(["a"])) is None
    assert find_repeated(Keys.of([*words, "key 77", "key 400"])) == (77, 500)
    with pytest.raises(SourceError, match=r"row 0 and row 2 have the same key 'a'"):
        check_keys(Keys.of("aba"), "row {}".format, hint="rename")
    with pytest.raises(SourceError, match=r"row 4: the name '\\ud800' is not valid UTF-8"):
        check_keys(Keys.of(WORDS), "row {}".format, hint="rename")


def test_labels():
    labels, names = LabelColumn(["b", None, "a", "b", NO_LABEL]).indices(None, str)
    assert labels.tolist() == [1, NO_LABEL, 0, 1, NO_LABEL] and names == ("a", "b") and labels.dtype == np.int64
    labels, names = LabelColumn(["10", "-1", "2", None]).indices(None, str, untyped=True)
    assert labels.tolist() == [10, NO_LABEL, 2, NO_LABEL] and len(names) == 11
    labels, names = LabelColumn(["10", "2"]).indices(["2", "10"], str, untyped=True)
    assert labels.tolist() == [1, 0]
    with pytest.raises(SourceError, match="row 2: the label 'c' is not among the 1 class names"):
        LabelColumn(["a", "a", "c", "c"]).indices(["a"], "row {}".format)


def kept_and_peak(open_source):
    open_source()
    tracemalloc.start()
    try:
        source = open_source()
        return (np.array(tracemalloc.get_traced_memory()) - 60_000) / len(source)  # what does not grow with the rows
    finally:
        tracemalloc.stop()


def test_tars_keep_less_than_60_bytes_a_row(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for number in range(1000):
            for suffix, content in (("jpg", b"x" * 700), ("cls", b"%d" % (number % 1000))):
                info = tarfile.TarInfo(f"n{number % 1000:08}_{number:06}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    kept, peak = kept_and_peak(lambda: TarShards(tmp_path / "x.tar"))
    assert kept < 60 and peak < 400


def test_texts_keep_less_than_60_bytes_a_row(tmp_path):
    rows = [{"text": f"text number {number}, " + "words " * 20, "label": f"c{number % 14}"} for number in range(1000)]
    path = write_jsonl(tmp_path / "x.jsonl", rows)
    kept, peak = kept_and_peak(lambda: TextFiles(path))
    assert kept < 60 and peak < 400
