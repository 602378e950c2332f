"""Texts and images in parquet files."""

import builtins
import hashlib
import os
import tracemalloc

import pyarrow as pa
import pytest

from featurecache.errors import BadSampleError, SourceError, UsageError
from featurecache.sources import ParquetTable, Tabular, TextFiles, decode, open_data, parquet_files
from featurecache.sources.text_records import Columns
from featurecache.types import NO_LABEL, Reason
from tests.contracts.source_contract import SourceContract
from tests.sources.make_data import picture, write_jsonl, write_parquet

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
RECORDS = [
    {"id": "one", "text": "the first", "label": "b"},
    {"id": None, "text": "größer", "label": "a"},
    {"id": "three", "text": None, "label": None},
    {"id": "four", "text": "", "label": "b"},
    {"id": None, "text": "größer", "label": "a"},
]


def images(count, paths=True):
    return pa.array([{"bytes": picture(n), "path": f"{n}.png" if paths else None} for n in range(count)], IMAGE)


def tabular(*paths, class_names=None, **columns):
    return Tabular(ParquetTable(paths), columns=Columns(**columns), class_names=class_names)


def column(records, name):
    return [record[name] for record in records]


class TestParquetTexts(SourceContract):
    valid = 3

    def make_source(self, tmp_path):
        columns = {name: column(RECORDS, name) for name in ("label", "text", "id")}
        return tabular(write_parquet(tmp_path / "x.parquet", columns, rows=2))


class TestParquetImages(SourceContract):
    valid = 6

    def make_source(self, tmp_path):
        first = {"image": images(4), "label": [0, 1, 1, -1]}
        second = {"image": pa.array([{"bytes": picture(7), "path": "a/7.png"}, None, first["image"][0]], IMAGE)}
        features = {"label": {"_type": "ClassLabel", "names": ["cat", "dog"]}}
        paths = [tmp_path / "x-1.parquet", tmp_path / "x-0.parquet"]
        write_parquet(paths[1], first, features=features, rows=3)
        write_parquet(paths[0], {**second, "label": [1, 1, 0]}, features=features)
        return tabular(*paths)


class TestParquetBytes(SourceContract):
    def make_source(self, tmp_path):
        return tabular(write_parquet(tmp_path / "x.parquet", {"jpg": [picture(n, "JPEG") for n in range(5)]}, rows=2))


def test_texts_are_those_of_the_same_jsonl(tmp_path):
    records = [{"text": f"text {n}", "label": n % 3} for n in range(50)] + [{"text": None, "label": None}]
    theirs = TextFiles(write_jsonl(tmp_path / "x.jsonl", records))
    mine = tabular(
        write_parquet(tmp_path / "x.parquet", {"text": column(records, "text"), "label": column(records, "label")})
    )
    assert list(mine.keys[:50]) == list(theirs.keys[:50]) and mine.keys[50] == "row-51"
    assert mine.labels.tolist() == theirs.labels.tolist() and mine.class_names == theirs.class_names
    assert [s.encoded for s in mine.iter(0, 51)] == [s.encoded for s in theirs.iter(0, 51)]


def test_keys_of_texts(tmp_path):
    columns = {name: column(RECORDS, name) for name in ("label", "text", "id")}
    source = tabular(write_parquet(tmp_path / "x.parquet", columns))
    digest = hashlib.sha256("größer".encode()).hexdigest()[:32]
    assert source.keys == ["one", digest, "three", "four", f"{digest}-2"]
    assert source.labels.tolist() == [1, 0, NO_LABEL, 1, 0] and source.class_names == ("a", "b")
    assert [sample.problem for sample in source.iter(1, 4)] == [Reason.VALID, Reason.UNREADABLE, Reason.VALID]
    with pytest.raises(BadSampleError):
        decode(source[3], "text")


def test_keys_of_images(tmp_path):
    path = write_parquet(tmp_path / "x.parquet", {"image": images(3)})
    assert tabular(path).keys == ["0.png", "1.png", "2.png"]
    digests = [hashlib.sha256(picture(n)).hexdigest()[:32] for n in range(3)]
    assert tabular(write_parquet(tmp_path / "y.parquet", {"image": images(3, paths=False)})).keys == digests
    twice = pa.array([{"bytes": picture(n), "path": "same.png"} for n in range(3)], IMAGE)
    assert tabular(write_parquet(tmp_path / "z.parquet", {"image": twice})).keys == digests
    ids = {"image": images(3), "id": [5, 6, 7]}
    assert tabular(write_parquet(tmp_path / "w.parquet", ids)).keys == ["5", "6", "7"]
    with pytest.raises(SourceError, match=r"row 1 of .*v.parquet and row 3 of .*v.parquet have the same key '5'"):
        tabular(write_parquet(tmp_path / "v.parquet", {**ids, "id": [5, 6, 5]}))


def test_rows_of_several_files_are_told_apart(tmp_path):
    for name in ("b", "a"):
        write_parquet(tmp_path / f"{name}.parquet", {"text": [name, None]})
    source = tabular(tmp_path / "b.parquet", tmp_path / "a.parquet")
    assert source.keys[1] == "a/row-2" and source.keys[3] == "b/row-2"
    assert [decode(source[row], "text") for row in (0, 2)] == ["a", "b"]


@pytest.mark.parametrize(
    ("columns", "options", "expected"),
    [
        ({"image": "struct", "text": "words"}, {}, "image"),
        ({"image": "struct", "caption": "words"}, {"text": "caption"}, "caption"),
        ({"image": "struct", "text": "words"}, {"text": "text"}, "text"),
        ({"words": "words"}, {"text": "text"}, "no text column 'text'"),
        ({"text": "words"}, {"label": "label"}, "no label column 'label'"),
        ({"text": "words"}, {"id": "id"}, "no id column 'id'"),
        ({"image": "struct", "photo": "struct"}, {}, "image"),
        ({"left": "struct", "right": "struct"}, {"image": "right"}, "right"),
        ({"left": "struct", "right": "struct"}, {}, r"several image columns \(left, right\).*--image-column"),
        ({"scan": "struct", "note": "words"}, {}, "scan"),
        ({"scan": "bytes", "note": "words"}, {}, "note"),
        ({"scan": "bytes"}, {"image": "scan"}, "scan"),
        ({"scan": "bytes"}, {}, r"no text column 'text'; its columns are: 'scan' \(binary\)"),
        ({"JPG": "bytes"}, {}, "JPG"),
        ({"sentence": "words", "label": "words"}, {}, "sentence"),
        ({"premise": "words", "hypothesis": "words"}, {}, "no text column 'text'.*'premise'.*--text-column"),
        ({"text": "words"}, {"image": "text"}, "no image column 'text'"),
        ({"text": "words"}, {"text": "body"}, "no text column 'body'"),
        ({"text": "words"}, {"label": "kind"}, "no label column 'kind'"),
        ({"text": "words"}, {"id": "name"}, "no id column 'name'"),
        ({"text": "numbers"}, {}, r"no text column 'text'; its columns are: 'text' \(int64\)"),
    ],
)
def test_which_column_is_read(tmp_path, columns, options, expected):
    values = {"struct": images(2), "bytes": [picture(0), picture(1)], "words": ["one", "two"], "numbers": [1, 2]}
    path = write_parquet(tmp_path / "x.parquet", {name: values[kind] for name, kind in columns.items()})
    if expected in columns:
        assert tabular(path, **options)._content.column == expected
    else:
        with pytest.raises(SourceError, match=expected):
            tabular(path, **options)


def test_class_names_of_hugging_face(tmp_path):
    features = {"label": {"_type": "ClassLabel", "names": ["cat", "dog", "emu"]}, "text": {"_type": "Value"}}
    path = write_parquet(tmp_path / "x.parquet", {"text": ["a", "b", "c"], "label": [2, 0, -1]}, features=features)
    assert tabular(path).class_names == ("cat", "dog", "emu") and tabular(path).labels.tolist() == [2, 0, NO_LABEL]
    assert tabular(path, class_names=["emu", "cat"]).labels.tolist() == [0, 1, NO_LABEL]
    fine = {"fine": {"_type": "ClassLabel", "names": ["x", "y"]}}
    path = write_parquet(tmp_path / "y.parquet", {"text": ["a", "b"], "fine": [1, 0]}, features=fine)
    assert tabular(path).class_names == ("x", "y") and tabular(path).labels.tolist() == [1, 0]
    path = write_parquet(tmp_path / "z.parquet", {"text": ["a", "b"], "fine": [1, 5]}, features=fine)
    with pytest.raises(SourceError, match=r"row 2 of .*z.parquet: the label 5 is not among the 2 class names"):
        tabular(path)


@pytest.mark.parametrize(
    "notes",
    [b"", b"{", b"[]", b'{"info": 3}', b'{"info": {"features": {"label": {"_type": "ClassLabel", "names": 3}}}}'],
)
def test_notes_that_make_no_sense_are_left_out(tmp_path, notes):
    table = pa.table({"text": ["a"], "label": [3]}).replace_schema_metadata({b"huggingface": notes})
    pa.parquet.write_table(table, tmp_path / "x.parquet")
    assert tabular(tmp_path / "x.parquet").labels.tolist() == [3]


def test_odd_types(tmp_path):
    columns = {
        "text": pa.array(["one", "two", "one"]).dictionary_encode(),
        "label": pa.array([1.0, float("nan"), 0.0]),
        "id": pa.array(["a", "b", "c"], pa.large_string()),
    }
    source = tabular(write_parquet(tmp_path / "x.parquet", columns))
    assert [decode(sample, "text") for sample in source.iter(0, 3)] == ["one", "two", "one"]
    assert source.keys == ["a", "b", "c"] and source.labels.tolist() == [1, NO_LABEL, 0]
    broken = pa.Array.from_buffers(pa.string(), 1, pa.array([b"caf\xe9"]).buffers())
    source = tabular(write_parquet(tmp_path / "y.parquet", {"text": broken}))
    assert source[0].encoded == b"caf\xe9"
    with pytest.raises(SourceError, match=r"row 1 of .*z.parquet: \[1\] is no label"):
        tabular(write_parquet(tmp_path / "z.parquet", {"text": ["a"], "label": [[1]]}))


def test_damaged_files(tmp_path):
    path = write_parquet(tmp_path / "x.parquet", {"text": [f"text {n}" for n in range(100)]})
    whole = path.read_bytes()
    for content in (b"", b"PAR1", whole[:-30], whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(SourceError, match="x.parquet cannot be read as parquet"):
            tabular(path)
    path.write_bytes(whole[:60] + bytes([whole[60] ^ 0xFF]) + whole[61:])
    with pytest.raises(SourceError, match=r"row 1 of .*x.parquet and what follows cannot be read"):
        tabular(path)
    write_parquet(tmp_path / "y.parquet", {"text": ["a"], "more": [1]})
    path.write_bytes(whole)
    with pytest.raises(SourceError, match="y.parquet has other columns than .*x.parquet"):
        tabular(path, tmp_path / "y.parquet")
    with pytest.raises(SourceError, match="has no rows"):
        tabular(write_parquet(tmp_path / "z.parquet", {"text": pa.array([], pa.string())}))


def test_a_file_that_is_damaged_later_gives_bad_samples(tmp_path):
    path = write_parquet(tmp_path / "x.parquet", {"text": ["a", "b"], "id": ["1", "2"]})
    source = tabular(path)
    source._table._fresh()
    path.write_bytes(b"")
    assert [sample.problem for sample in source.iter(0, 2)] == [Reason.UNREADABLE] * 2


@pytest.mark.parametrize("kept", [1 << 40, 2000])
@pytest.mark.parametrize("size", [1 << 40, 500, 1])
def test_reads_in_any_order(tmp_path, monkeypatch, size, kept):
    monkeypatch.setattr(parquet_files, "_BATCH_BYTES", size)
    monkeypatch.setattr(parquet_files, "_KEPT_BYTES", kept)
    texts = [f"text {n} " * (n % 7 + 1) for n in range(400)]
    for number in range(2):
        write_parquet(tmp_path / f"{number}.parquet", {"text": texts[200 * number :][:200]}, rows=90)
    source = tabular(tmp_path / "0.parquet", tmp_path / "1.parquet")
    for start, stop in [(0, 400), (10, 12), (85, 260), (3, 4), (399, 400), (130, 131), (150, 151), (140, 390)]:
        assert [sample.encoded.decode() for sample in source.iter(start, stop)] == texts[start:stop]


def test_a_large_row_group_is_not_held_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_files, "_KEPT_BYTES", 1 << 20)
    monkeypatch.setattr(parquet_files, "_BATCH_BYTES", 1 << 20)
    noise = [os.urandom(20_000) for _ in range(1000)]
    path = write_parquet(tmp_path / "x.parquet", {"image": noise, "id": list(range(1000))})
    source = tabular(path)
    before = pa.total_allocated_bytes()
    most = 0
    for row in (*range(1000), 990, 3):  # forward, a step back, and back to the start
        assert source[row].encoded == noise[row]
        most = max(most, pa.total_allocated_bytes() - before)
    assert most < 8 << 20  # of 20 MB


def test_damage_in_the_middle(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_files, "_BATCH_BYTES", 20_000)
    noise = [os.urandom(1000) for _ in range(2000)]
    path = tmp_path / "x.parquet"
    write_parquet(path, {"jpg": noise, "id": list(range(2000))}, rows=1900)
    source = tabular(path)
    content = bytearray(path.read_bytes())
    content[content.index(noise[1800])] ^= 0xFF
    path.write_bytes(content)
    problems = [sample.problem for sample in source.iter(0, 2000)]
    assert problems[1800] is Reason.UNREADABLE and set(problems[1920:]) == {Reason.VALID}
    assert problems[:500] == [Reason.VALID] * 500
    assert source[1800].problem is Reason.UNREADABLE and source[1999].encoded == noise[1999]
    with pytest.raises(SourceError, match="x.parquet and what follows cannot be read"):
        source.fingerprint()


def test_kept_row_groups_have_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_files, "_KEPT_BYTES", 3000)
    source = tabular(write_parquet(tmp_path / "x.parquet", {"text": [f"{n:0100}" for n in range(200)]}, rows=10))
    list(source.iter(0, 200))
    kept = source._table._kept
    assert 1 < len(kept) < 4 and sum(batch.nbytes for batch in kept.values()) == source._table._kept_bytes <= 3000


def test_a_read_spans_batches_without_joining_them(tmp_path, monkeypatch):
    """One array of Arrow's cannot hold more than 2 GiB."""
    monkeypatch.setattr(parquet_files, "_BATCH_ROWS", 1)
    large = pa.array([{"bytes": picture(n) * 1000, "path": f"{n}.png"} for n in range(4)], IMAGE)
    table = ParquetTable([write_parquet(tmp_path / "x.parquet", {"image": large})])
    assert [len(piece) for piece in table.read("image", 0, 4).chunks] == [1, 1, 1, 1]
    batches = {id(batch) for batch in table._kept.values()}
    table.read("image", 2, 3)
    table.read("image", 0, 4)
    assert {id(batch) for batch in table._kept.values()} == batches  # steps back find what is kept


def test_class_names_that_differ_between_files(tmp_path):
    for name, names in {"a": ["cat", "dog"], "b": ["dog", "cat"]}.items():
        features = {"label": {"_type": "ClassLabel", "names": names}}
        write_parquet(tmp_path / f"{name}.parquet", {"text": [name], "label": [0]}, features=features)
    with pytest.raises(SourceError, match=r"b.parquet has other class names than .*a.parquet"):
        tabular(tmp_path / "a.parquet", tmp_path / "b.parquet")


def test_an_id_that_is_the_hash_of_another_row(tmp_path):
    digest = hashlib.sha256(b"words").hexdigest()[:32]
    path = write_parquet(tmp_path / "x.parquet", {"text": ["words", "other"], "id": [None, digest]})
    with pytest.raises(SourceError, match="have the same key"):
        tabular(path)
    path = write_parquet(tmp_path / "y.parquet", {"text": [None, "words"], "id": [None, "row-1"]})
    with pytest.raises(SourceError, match="have the same key 'row-1'"):
        tabular(path)


def test_rows_without_content_in_files_of_one_name(tmp_path):
    paths = [write_parquet(tmp_path / folder / "x.parquet", {"text": ["words", None]}) for folder in "ab"]
    with pytest.raises(
        SourceError, match=r"row 2 of .*a/x.parquet and row 2 of .*b/x.parquet have the same key 'x/row-2'"
    ):
        tabular(*paths)


def test_what_python_has_no_value_for_is_told(tmp_path):
    years = pa.array([1 << 50], pa.timestamp("s"))
    with pytest.raises(SourceError, match=r"row 1 of .*x.parquet and what follows cannot be read"):
        tabular(write_parquet(tmp_path / "x.parquet", {"text": ["a"], "label": years}))


@pytest.mark.parametrize(("kind", "expected"), [("Audio", "text"), ("Video", "text"), ("Image", "image")])
def test_sounds_are_no_images(tmp_path, kind, expected):
    features = {"clip": {"_type": kind}, "text": {"_type": "Value"}}
    path = write_parquet(tmp_path / "x.parquet", {"clip": images(1), "text": ["words"]}, features=features)
    assert tabular(path).modality == expected
    assert tabular(path, image="clip").modality == "image"


def test_as_data(tmp_path, monkeypatch):
    monkeypatch.setenv("FC_DATA", str(tmp_path))
    for split, count in {"train": 3, "validation": 2}.items():
        name = f"pets/data/{split}-00000-of-00001-0123456789abcdef.parquet"
        write_parquet(tmp_path / name, {"image": images(count), "label": list(range(count))})
    data = open_data("pets")
    assert {split: len(source) for split, source in data.items()} == {"train": 3, "val": 2}
    assert data["val"].class_names == ("0", "1", "2") and data["val"].modality == "image"
    assert len(open_data(str(tmp_path / "pets/data/train*.parquet"))["train"]) == 3
    write_parquet(tmp_path / "x.parquet", {"left": images(2), "right": images(2)})
    assert len(open_data("x", image_column="left")["train"]) == 2


def test_without_pyarrow(tmp_path, monkeypatch):
    def refuse(name, *args, **kwargs):
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    real = builtins.__import__
    path = write_parquet(tmp_path / "x.parquet", {"text": ["a"]})
    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(UsageError, match=r"pip install 'featurecache\[hub\]'"):
        open_data(str(path))


def test_listing_holds_little(tmp_path):
    write_parquet(tmp_path / "x.parquet", {"text": [f"text {n} " * 20 for n in range(2000)]}, rows=500)
    tabular(tmp_path / "x.parquet")
    tracemalloc.start()
    source = tabular(tmp_path / "x.parquet")
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 60 * len(source) + 100_000
