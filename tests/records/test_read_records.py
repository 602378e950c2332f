"""What is read of a file of records: every format in every form, and what is wrong with one."""

import json
import math
import mmap
import re

import numpy as np
import pytest

from featurecache.errors import SourceError, UsageError
from featurecache.records import LEAST, log_probabilities, read_records, table
from tests.records.answer_files import chances, write, write_jsonl

NAMES = ["ant", "bee", "cat"]
KEYS = [f"sample-{number}" for number in range(7)]
GIVEN = chances(7, 3)
FORMATS = ["x.jsonl", "x.jsonl.gz", "x.csv", "x.csv.gz", "x.parquet"]


def columns(rows=GIVEN, key="key", **more):
    return [
        {key: name, **dict(zip(NAMES, row.tolist(), strict=True)), **more}
        for name, row in zip(KEYS, rows, strict=False)
    ]


def lists(rows=GIVEN, column="probabilities", **more):
    return [{"key": name, column: row.tolist(), **more} for name, row in zip(KEYS, rows, strict=False)]


def objects(rows=GIVEN):
    return [
        {**record, "probabilities": dict(zip(NAMES, record["probabilities"], strict=True))} for record in lists(rows)
    ]


def softmax(logits):
    exact = np.exp(np.asarray(logits, np.float64))
    return exact / exact.sum(axis=1, keepdims=True)


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    monkeypatch.setattr(table, "_BLOCK", 3)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("records", [columns(), lists(), objects()], ids=["columns", "lists", "objects"])
def test_every_form_in_every_format(tmp_path, name, records):
    if ".csv" in name and records[0].keys() == {"key", "probabilities"}:
        records = [{**record, "probabilities": json.dumps(record["probabilities"])} for record in records]
    found = read_records(write(tmp_path / name, records), data_classes=NAMES)
    assert list(found.keys) == KEYS and len(found) == 7
    assert found.form.classes.names == tuple(NAMES) and found.form.are == "probabilities"
    assert found.logits.dtype == np.float32 and not found.logits.flags.writeable
    np.testing.assert_allclose(softmax(found.logits), GIVEN, atol=1e-6)
    assert len(found.sha256) == 64


def test_a_softmax_in_float32_gives_the_probabilities_back():
    given = np.array([[0, 1, 0], [0.25, 0, 0.75], [1e-60, 0.5, 0.5], [1 / 3] * 3])
    logits = log_probabilities(given)
    assert logits[0].tolist() == [LEAST, 0, LEAST]
    exact = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert exact.dtype == np.float32 and exact[0].tolist() == [0, 1, 0] and exact[2, 0] == 0
    np.testing.assert_allclose(exact, given, atol=1e-7)


def test_the_least_is_the_first_whole_number_whose_exponential_is_nothing_in_float32():
    assert np.exp(np.float32(LEAST)) == 0 < np.exp(np.float32(LEAST + 1))


def test_sums_that_are_a_little_off_are_made_whole(tmp_path):
    rounded = np.array([[0.333, 0.333, 0.333], [0.1, 0.2, 0.7]])
    path = write_jsonl(tmp_path / "x.jsonl", lists(rounded))
    found = read_records(path, tolerance=0.01)
    np.testing.assert_allclose(softmax(found.logits), [[1 / 3] * 3, [0.1, 0.2, 0.7]], atol=1e-7)
    np.testing.assert_allclose(np.logaddexp.reduce(found.logits, axis=1), 0, atol=1e-6)  # they are log-probabilities
    with pytest.raises(UsageError, match=r"'sample-0' has probabilities that sum to 0\.999, not to 1"):
        read_records(path, tolerance=1e-4)


@pytest.mark.parametrize("records", [lists(GIVEN * 9 - 4, "logits"), columns(GIVEN * 9 - 4)], ids=["list", "columns"])
def test_logits_are_kept_as_they_are(tmp_path, records):
    found = read_records(write_jsonl(tmp_path / "x.jsonl", records), are=None if "logits" in records[0] else "logits")
    assert found.form.are == "logits"
    np.testing.assert_array_equal(found.logits, (GIVEN * 9 - 4).astype(np.float32))


def test_which_of_both_is_said(tmp_path):
    records = [{**one, "logits": [1.0, 2.0, 3.0]} for one in lists()]
    path = write_jsonl(tmp_path / "x.jsonl", records)
    with pytest.raises(UsageError, match="there are probabilities and logits") as error:
        read_records(path)
    assert "--are" in error.value.hint
    assert read_records(path, are="logits").logits[3].tolist() == [1, 2, 3]
    found = read_records(path, are="probabilities")
    np.testing.assert_allclose(softmax(found.logits), GIVEN, atol=1e-6)
    assert found.form.unread == ("logits",)


def test_where_class_names_are_from(tmp_path):
    path = write_jsonl(tmp_path / "lists.jsonl", lists())
    assert read_records(path).form.classes.names == ()
    assert read_records(path, data_classes=["p", "q"]).form.classes.names == ()
    assert read_records(path, data_classes=["p", "q", "r"]).form.classes.names == ("p", "q", "r")
    assert read_records(path, classes=NAMES, data_classes=["p", "q", "r"]).form.classes.names == tuple(NAMES)
    # columns are read in the order of --classes, and what they leave out is not looked at
    records = columns(GIVEN, text="words", label=1, other="x")
    path = write_jsonl(tmp_path / "columns.jsonl", records)
    found = read_records(path, classes=["cat", "ant", "bee"])
    np.testing.assert_allclose(softmax(found.logits), GIVEN[:, [2, 0, 1]], atol=1e-6)
    assert found.form.unread == ("text", "label", "other")
    assert read_records(path, data_classes=NAMES).form.classes.names == tuple(NAMES)
    with pytest.raises(SourceError, match="line 1, the record of 'sample-0': 'other' is 'x', which is no number"):
        read_records(path)


def test_an_object_may_leave_out_what_has_no_probability(tmp_path):
    records = [{"key": 1, "probabilities": {"bee": 1}}, {"key": 2, "probabilities": {"cat": 0.25, "ant": 0.75}}]
    found = read_records(write_jsonl(tmp_path / "x.jsonl", records), data_classes=NAMES)
    assert list(found.keys) == ["1", "2"]
    np.testing.assert_allclose(softmax(found.logits), [[0, 1, 0], [0.75, 0, 0.25]], atol=1e-7)


def test_keys_of_other_columns_and_samples_of_splits(tmp_path):
    path = write_jsonl(tmp_path / "x.jsonl", columns(key="id"))
    found = read_records(path)
    wanted = ["sample-3", "none", "sample-0"]
    assert found.rows_of("train", wanted).tolist() == [3, -1, 0]
    records = [{**record, "split": "valid" if at % 2 else "train"} for at, record in enumerate(columns(key="name"))]
    for record in records:
        record["name"] = "same" if record["name"] in ("sample-0", "sample-1") else record["name"]
    found = read_records(write_jsonl(tmp_path / "y.jsonl", records), key_column="name")
    assert found.rows_of("train", ["same", "sample-3"]).tolist() == [0, -1]
    assert found.rows_of("val", ["same", "sample-3"]).tolist() == [1, 3]


def test_many_records_leave_memory_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(table, "_BLOCK", 1024)
    given = chances(3000, 3, seed=1)
    path = write(tmp_path / "x.parquet", [{"key": at, "probabilities": row.tolist()} for at, row in enumerate(given)])
    found = read_records(path)
    np.testing.assert_allclose(softmax(found.logits), given, atol=1e-6)
    held = found.logits
    while isinstance(held, np.ndarray):
        held = held.base
    assert isinstance(memoryview(held).obj, mmap.mmap)  # of a file, and not in this process's memory


NEGATIVE, SUMS, INFINITE = GIVEN.copy(), GIVEN.copy(), GIVEN.copy()
NEGATIVE[2:5, 0] -= 1
SUMS[[1, 6]] *= 1.5
INFINITE[4, 1] = math.nan


@pytest.mark.parametrize(
    ("records", "says"),
    [
        (lists(NEGATIVE), "the record of 'sample-2' has a negative probability: -.*; 3 of 7 records are no probabil"),
        (lists(SUMS), "'sample-1' has probabilities that sum to 1.5, not to 1 .*; 2 of 7 records"),
        (lists(INFINITE), "'sample-4' has a number that is not finite: nan$"),
        (columns(INFINITE), "'sample-4' has a number that is not finite: nan$"),
        (
            lists(np.full((7, 3), math.inf), "logits"),
            "'sample-0' has a number that is not finite: .*; 7 of 7 records are no logi",
        ),
        ([*lists(), *lists(GIVEN[:2])], "more than one record of 'sample-0', and so it is with 2 keys"),
        ([*lists(), {"key": "more", "probabilities": [0.5, 0.5]}], "line 8, the record of 'more': it has 2 numbers in"),
        (
            [*lists(), {"key": "more"}],
            "'more': it has no list of numbers in 'probabilities', and the first record has 3",
        ),
        ([*lists(), {"key": "more", "probabilities": [1, "x", 0]}], "number 2 is 'x', which is no number"),
        ([*lists(), {"key": "more", "probabilities": [1, None, 0]}], "number 2 is 'None', which is no number"),
        ([*lists(), {"key": "more", "probabilities": [1, [2], 0]}], r"number 2 is '\[2\]', which is no number"),
        ([*lists(), {"key": 1.5, "probabilities": [1, 0, 0]}], "line 8: it has no key in 'key'"),
        ([{"probabilities": [1]}], "line 1: no column 'key'; there are 'probabilities'"),
        ([{"key": "a"}], "line 1: no column has numbers of classes; besides the key there are no others"),
        ([{"key": "a", "probabilities": "high"}], "'probabilities' has no list of numbers"),
        ([{"key": "a", "probabilities": []}], "'probabilities' has no list of numbers"),
        (
            [*objects(), {"key": "b", "probabilities": {"dog": 1}}],
            "it has a class 'dog', which is none of those of the first record",
        ),
        ([{"key": "a", "split": "Train 1", "ant": 1}], "'Train 1' cannot name a split"),
        ([], "has no records"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path, records, says):
    path = write_jsonl(tmp_path / "x.jsonl", records)
    with pytest.raises((UsageError, SourceError)) as error:
        read_records(path)
    assert re.search(says, error.value.message) and error.value.hint and error.value.exit_code == 2


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"classes": ["a", "b"]}, "'probabilities' has 3 numbers, and there are 2 class names"),
        ({"classes": ["a", "a", "b"]}, "the class names are not different names"),
        ({"classes": []}, "the class names are not different names"),
        ({"key_column": "id"}, "no column 'id'; there are 'key', 'probabilities'"),
        ({"are": "logits"}, "there is no column 'logits', but one 'probabilities'"),
        ({"are": "logits", "classes": ["a"]}, "no column of the class 'a'"),
    ],
)
def test_options_that_do_not_fit(tmp_path, options, says):
    path = write_jsonl(tmp_path / "x.jsonl", lists())
    with pytest.raises((UsageError, SourceError), match=says):
        read_records(path, **options)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("x.jsonl", b'{"key": "a", "p": 1}\nno JSON\n', "x.jsonl, line 2 is no JSON object"),
        ("x.jsonl", b"[1]\n", "line 1 is no JSON object"),
        ("x.jsonl.gz", b"not packed", "cannot be read"),
        ("x.csv", b"key,p,p\na,1,0\n", "has two columns 'p'"),
        ("x.csv", b"key,p,q\na,1,0\nb,1\n", "line 3 has not as many fields"),
        ("x.csv", b"key,p,q\na,1,0,2\n", "line 2 has not as many fields"),
        ("x.csv", b"key,p,q\na,1,zero\n", "'q' is 'zero', which is no number"),
        ("x.csv", b"key,p,q\n", "has no records"),
        ("x.parquet", b"PAR1 and no more", "cannot be read as parquet"),
        ("x.txt", b"", "is no file of records"),
        ("x.parquet.gz", b"", "is no file of records"),
    ],
)
def test_files_that_are_none(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceError, match=says) as error:
        read_records(tmp_path / name)
    assert error.value.hint


def test_no_file(tmp_path):
    with pytest.raises(SourceError, match="there is no file"):
        read_records(tmp_path / "x.jsonl")


def test_a_file_that_changes_while_it_is_read(tmp_path, monkeypatch):
    path = write_jsonl(tmp_path / "x.jsonl", lists())
    real = table.find_form

    def meanwhile(*args, **options):
        path.write_text(path.read_text() + "\n")
        return real(*args, **options)

    monkeypatch.setattr(table, "find_form", meanwhile)
    with pytest.raises(SourceError, match="was changed while it was read"):
        read_records(path)
