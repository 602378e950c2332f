"""Texts in .jsonl, .csv and .txt files."""

import csv
import gzip
import hashlib
import io
import json

import pytest

from featurecache.errors import BadSampleError, SourceError
from featurecache.sources import TextFiles, decode, text_records
from featurecache.types import NO_LABEL, Reason
from tests.contracts.source_contract import SourceContract
from tests.sources.make_data import DATA, write_jsonl

RECORDS = [
    {"id": "one", "text": "the first", "label": "b"},
    {"id": 2, "text": "the zweite, größer\nwith a line break", "label": "a"},
    {"text": "no id", "label": None},
    {"id": "empty", "text": "", "label": "b"},
]
KEYS = ["one", "2", hashlib.sha256(b"no id").hexdigest()[:32], "empty"]


def csv_text(records) -> str:
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, ["label", "text", "id"])
    writer.writeheader()
    writer.writerows(records)
    return stream.getvalue()


class TestJsonLines(SourceContract):
    valid = 3

    def make_source(self, tmp_path):
        return TextFiles(write_jsonl(tmp_path / "x.jsonl", RECORDS))


class TestPackedJsonLines(SourceContract):
    def make_source(self, tmp_path):
        return TextFiles(DATA / "debtext-test.jsonl.gz")


class TestCsv(SourceContract):
    valid = 3

    def make_source(self, tmp_path):
        (tmp_path / "x.csv").write_text(csv_text(RECORDS), newline="")
        return TextFiles([tmp_path / "x.csv"])


class TestTxt(SourceContract):
    valid = 2

    def make_source(self, tmp_path):
        (tmp_path / "x.txt").write_bytes(b"one\n\n  \ntwo\n")
        return TextFiles([tmp_path / "x.txt"])


def test_debtext_is_what_json_reads():
    source = TextFiles(DATA / "debtext-train.jsonl.gz")
    with gzip.open(DATA / "debtext-train.jsonl.gz", "rt", encoding="utf-8") as stream:
        records = [json.loads(line) for line in stream]
    assert source.class_names == tuple(json.loads((DATA / "debtext-labels.json").read_text()))
    assert list(source.keys) == [record["id"] for record in records]
    assert source.labels.tolist() == [record["y"] for record in records]
    assert [decode(sample, "text") for sample in source.iter(0, 3000)] == [record["text"] for record in records]


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".csv", ".csv.gz"])
def test_formats_give_the_same_samples(tmp_path, suffix):
    text = csv_text(RECORDS) if suffix.startswith(".csv") else "".join(json.dumps(record) + "\n" for record in RECORDS)
    content = b"\xef\xbb\xbf" + text.encode()  # Excel writes a byte-order mark
    (tmp_path / f"x{suffix}").write_bytes(gzip.compress(content) if suffix.endswith(".gz") else content)
    source = TextFiles(tmp_path / f"x{suffix}")
    assert list(source.keys) == KEYS
    assert [sample.encoded.decode() for sample in source.iter(0, 4)] == [record["text"] for record in RECORDS]
    assert source.class_names == ("a", "b") and source.labels.tolist() == [1, 0, NO_LABEL, 1]


@pytest.mark.parametrize("suffix", [".txt", ".txt.gz"])
def test_txt_is_a_text_a_line(tmp_path, suffix):
    content = b"\xef\xbb\xbfone\r\n\n \t\ntwo \nlast"
    (tmp_path / f"x{suffix}").write_bytes(gzip.compress(content) if suffix.endswith(".gz") else content)
    source = TextFiles(tmp_path / f"x{suffix}")
    assert [sample.encoded for sample in source.iter(0, 5)] == [b"one", b"", b" \t", b"two ", b"last"]
    assert source.keys[1:3] == ["line-2", "line-3"] and source.keys[0] == hashlib.sha256(b"one").hexdigest()[:32]
    assert source.class_names == () and set(source.labels) == {NO_LABEL}
    for index in (1, 2):
        with pytest.raises(BadSampleError) as error:
            decode(source[index], "text")
        assert error.value.reason is Reason.EMPTY_TEXT


def test_bytes_that_are_not_utf8_are_kept(tmp_path):
    (tmp_path / "x.jsonl").write_bytes(
        b'{"text": "fine"}\n{"text": "caf\xe9"}\n{"text": "\\ud800!"}\n{"text": "\xff\\udc41"}\n'
    )
    (tmp_path / "x.csv").write_bytes(b"text\nfine\ncaf\xe9\n")
    (tmp_path / "x.txt").write_bytes(b"fine\ncaf\xe9\n")
    assert TextFiles(tmp_path / "x.jsonl")[1].encoded == b"caf\xe9"
    for name in ("x.jsonl", "x.csv", "x.txt"):
        source = TextFiles(tmp_path / name)
        assert decode(source[0], "text") == "fine"
        for sample in source.iter(1, len(source)):
            with pytest.raises(BadSampleError) as error:
                decode(sample, "text")
            assert error.value.reason is Reason.NOT_UTF8


def test_lines_that_are_no_records(tmp_path):
    deep = b"[" * 100_000
    lines = [b"no json", b'{"text": "ok"}', b"", b'{"other": 1}', b'["text"]', b'{"text": 3}', deep, b'{"text": null}']
    (tmp_path / "x.jsonl").write_bytes(b"\n".join(lines))
    source = TextFiles(tmp_path / "x.jsonl")
    unreadable = [f"line-{line}" for line in (1, 4, 5, 6, 7, 8)]
    assert [key for key in source.keys if key.startswith("line-")] == unreadable
    for sample in source.iter(0, len(source)):
        assert (sample.problem is Reason.UNREADABLE) == (sample.key in unreadable)
        assert sample.encoded == (b"" if sample.problem else b"ok")


def test_lines_of_several_files_have_their_own_keys(tmp_path):
    for name in ("b.txt", "a.txt"):
        (tmp_path / name).write_text(f"{name}\n\n")
    source = TextFiles([tmp_path / "b.txt", tmp_path / "a.txt"])
    assert source.keys[1] == "a/line-2" and source.keys[3] == "b/line-2"
    assert decode(source[0], "text") == "a.txt"


@pytest.mark.parametrize(
    ("labels", "class_names", "expected"),
    [
        ([2, 0, None], ("0", "1", "2"), [2, 0, NO_LABEL]),
        ([2.0, float("nan"), -1], ("0", "1", "2"), [2, NO_LABEL, NO_LABEL]),
        ([True, False, True], ("0", "1"), [1, 0, 1]),
        (["2", "10", ""], ("10", "2"), [1, 0, NO_LABEL]),
        ([None, None, None], (), [NO_LABEL] * 3),
    ],
)
def test_labels(tmp_path, labels, class_names, expected):
    records = [{"text": f"text {row}", "label": label} for row, label in enumerate(labels)]
    source = TextFiles(write_jsonl(tmp_path / "x.jsonl", records))
    assert source.class_names == class_names and source.labels.tolist() == expected


def test_numbers_in_csv_are_indices_unless_they_are_known_names(tmp_path):
    (tmp_path / "x.csv").write_text("text,label\none,3\ntwo,0\nthree,\n")
    assert TextFiles(tmp_path / "x.csv").labels.tolist() == [3, 0, NO_LABEL]
    assert TextFiles(tmp_path / "x.csv", class_names=["3", "7", "0"]).labels.tolist() == [0, 2, NO_LABEL]


@pytest.mark.parametrize(
    ("labels", "class_names", "message"),
    [
        (["a", "zebra"], ["a", "b"], r"line 2 of .*x.jsonl: the label 'zebra' is not among the 2 class names \(a, b\)"),
        ([0, 2], ["a", "b"], "the label 2 is not among"),
        ([0, "a"], None, "some labels are numbers and some are names"),
        ([0, -5], None, "-5 is no class index"),
        ([0, 10**12], None, "1000000000000 is no class index"),
        ([0.5, 0.25], None, r"line 1: 0.5 is no label  \(hint: .*--label-column"),
        (["a", [1]], None, r"line 2: \[1\] is no label"),
    ],
)
def test_refused_labels(tmp_path, labels, class_names, message):
    records = [{"text": f"text {row}", "label": label} for row, label in enumerate(labels)]
    with pytest.raises(SourceError, match=message):
        TextFiles(write_jsonl(tmp_path / "x.jsonl", records), class_names=class_names)


def test_other_columns(tmp_path):
    path = write_jsonl(tmp_path / "x.jsonl", [{"body": "words", "kind": "k", "name": "n", "text": 1, "id": "x"}])
    source = TextFiles(path, text_column="body", label_column="kind", id_column="name")
    assert (source.keys, source.class_names, decode(source[0], "text")) == (["n"], ("k",), "words")


@pytest.mark.parametrize("name", ["x.jsonl", "x.csv"])
def test_a_missing_text_column_is_told_with_those_there_are(tmp_path, name):
    (tmp_path / name).write_text('{"body": "a", "kind": 1}\n' if name == "x.jsonl" else "body,kind\na,1\n")
    with pytest.raises(SourceError, match=r"no column 'text'; its columns are: 'body', 'kind'  .*--text-column"):
        TextFiles(tmp_path / name)


def test_duplicates_are_told_with_their_lines(tmp_path):
    (tmp_path / "x.txt").write_text("same\nother\nsame\n")
    with pytest.raises(SourceError, match=r"line 1 of .*x.txt and line 3 of .*x.txt have the same key .*--id-column"):
        TextFiles(tmp_path / "x.txt")
    path = write_jsonl(tmp_path / "y.jsonl", [{"id": 1, "text": "a"}, {"id": "1", "text": "b"}])
    with pytest.raises(SourceError, match="line 1 of .* and line 2 of .* have the same key '1'"):
        TextFiles(path)


def test_csv_records_over_lines_and_short_ones(tmp_path):
    (tmp_path / "x.csv").write_text('label,text\na,"two\nlines"\nb\nb,"' + "long " * 40_000 + '"\n')
    limit = csv.field_size_limit()
    source = TextFiles(tmp_path / "x.csv")
    assert [len(sample.encoded) for sample in source.iter(0, 3)] == [9, 0, 200_000]
    assert source.keys[1] == "line-4" and source[1].problem is Reason.UNREADABLE
    assert csv.field_size_limit() == limit


def test_bad_files(tmp_path, monkeypatch):
    packed = gzip.compress(b"word\n" * 1000)
    (tmp_path / "cut.txt.gz").write_bytes(packed[:-12])
    (tmp_path / "not.txt.gz").write_bytes(b"plain")
    (tmp_path / "empty.txt").write_bytes(b"")
    (tmp_path / "nothing.jsonl").write_bytes(b"\xff\xfe{\0\n\0")
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    for name in ("cut.txt.gz", "not.txt.gz", "empty.txt", "nothing.jsonl", "x.parquet", "absent.csv"):
        with pytest.raises(SourceError, match=name):
            TextFiles(tmp_path / name)
    (tmp_path / "bomb.txt.gz").write_bytes(packed)
    monkeypatch.setattr(text_records, "MAX_UNPACKED_BYTES", 4999)
    with pytest.raises(SourceError, match="unpacks to more than 4,999 bytes"):
        TextFiles(tmp_path / "bomb.txt.gz")
    monkeypatch.setattr(text_records, "MAX_LINE_BYTES", 3)
    with pytest.raises(SourceError, match="a line of more than 3 bytes"):
        TextFiles(tmp_path / "bomb.txt.gz")


def test_an_id_that_is_not_text_gives_way_to_the_text(tmp_path):
    (tmp_path / "x.jsonl").write_bytes(b'{"id": "\xff", "text": "words"}\n')
    assert TextFiles(tmp_path / "x.jsonl").keys == [hashlib.sha256(b"words").hexdigest()[:32]]


def test_fingerprint_ignores_labels_and_packing(tmp_path):
    records = [{"id": "a", "text": "one"}, {"id": "b", "text": "two"}]
    first = TextFiles(write_jsonl(tmp_path / "x.jsonl", records)).fingerprint()
    labelled = [record | {"label": "c"} for record in records]
    (tmp_path / "y.jsonl.gz").write_bytes(gzip.compress(write_jsonl(tmp_path / "y.jsonl", labelled).read_bytes()))
    assert TextFiles(tmp_path / "y.jsonl.gz").fingerprint() == first
    longer = [records[0], {"id": "b", "text": "two!"}]
    assert TextFiles(write_jsonl(tmp_path / "z.jsonl", longer)).fingerprint() != first
    assert TextFiles(write_jsonl(tmp_path / "w.jsonl", records[::-1])).fingerprint() != first
