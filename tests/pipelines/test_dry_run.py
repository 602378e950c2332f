"""A dry run's figures are those of the real run, and it leaves nothing behind."""

import collections
import json
import shutil

import numpy as np
import pytest

from featurecache.errors import DiskFullError, IdentityError, UsageError
from featurecache.store import layout
from featurecache.store.reader import open_cache
from pipelines import describe_cache, dry_run, extract_cache, finish
from pipelines.events import Advance, Message

TEXTS = {
    "teacher": "random",
    "data": "synthetic-text:80",
    "model_kwargs": {"dim": 24, "classes": 6},
    "workers": 0,
    "device": "cpu",
    "batch_size": 4,
}
IMAGES = {"teacher": "random", "data": "synthetic:40", "workers": 0, "device": "cpu"}


@pytest.fixture(autouse=True)
def _briefly(monkeypatch):
    monkeypatch.setattr(dry_run, "_SECONDS", 0.05)
    monkeypatch.setattr(dry_run, "_WRITING_SECONDS", 0.01)


@pytest.fixture
def small_shards(monkeypatch):
    """Shards of 16 rows of 24 float32, of 32 of float16."""
    monkeypatch.setattr(layout, "_MAX_SHARD_BYTES", 16 * 24 * 4)


def everything(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def written(cache):
    """Bytes of the shard files by part and array, what assets have, and the number of all files."""
    arrays = collections.defaultdict(dict)
    for path in cache.glob("*/*/*/zarr.json"):
        part, array = path.parent.parent.relative_to(cache), path.parent
        arrays[str(part)][array.name] = sum(f.stat().st_size for f in array.glob("c/**/*") if f.is_file())
    assets = sum(path.stat().st_size for path in cache.glob("*/*/assets/*"))
    return dict(arrays), assets, sum(path.is_file() for path in cache.rglob("*"))


@pytest.mark.parametrize("large", [True, False], ids=["one shard", "many shards"])
@pytest.mark.parametrize(
    "options",
    [
        TEXTS,
        {**TEXTS, "encode": {"embedding": "int8", "logits": "topk:3"}},
        {**TEXTS, "encode": {"embedding": "int8:column", "logits": "int8:row"}, "outputs": ["embedding", "logits"]},
        {**TEXTS, "outputs": ["embedding"], "splits": ["test"], "encode": {"embedding": "float32"}},
        IMAGES,
    ],
    ids=["texts", "int8 and topk", "forced int8", "one output of one split", "images"],
)
def test_bytes_and_files_are_those_of_the_real_run(tmp_path, options, large, request):
    if not large:
        request.getfixturevalue("small_shards")
    facts = finish(extract_cache(**options, out=tmp_path / "here" / "cache", dry_run=True))
    assert everything(tmp_path) == []
    finish(extract_cache(**options, out=tmp_path / "here" / "cache"))
    arrays, assets, files = written(tmp_path / "here" / "cache")
    assert facts["bytes_by_array"] == arrays
    assert facts["bytes"] == sum(sum(sizes.values()) for sizes in arrays.values()) + assets
    assert facts["files"] == files
    made = describe_cache(tmp_path / "here" / "cache")["splits"]
    for split, told in facts["splits"].items():
        for name, text in told["outputs"].items():
            assert made[split]["random-text" if options is not IMAGES else "random-image"]["outputs"][name].startswith(
                text.partition(":")[0]
            )


def test_keys_of_different_lengths_take_what_they_take(tmp_path):
    """Keys lie end to end: one of 700 bytes does not make room for 600 of them."""
    lines = [json.dumps({"id": "x" * (700 if row == 5 else 3) + str(row), "text": "a"}) for row in range(600)]
    (tmp_path / "texts.jsonl").write_text("\n".join(lines))
    options = {"teacher": "random", "data": str(tmp_path / "texts.jsonl"), "workers": 0, "device": "cpu"}
    facts = finish(extract_cache(**options, out=tmp_path / "cache", dry_run=True))
    finish(extract_cache(**options, out=tmp_path / "cache"))
    arrays, _, files = written(tmp_path / "cache")
    assert (facts["bytes_by_array"], facts["files"]) == (arrays, files)


def test_what_it_says(tmp_path):
    facts = finish(extract_cache(**TEXTS, out=tmp_path / "cache", dry_run=True))
    assert set(facts["splits"]) == {"train", "test"}
    assert (facts["splits"]["train"]["rows"], facts["splits"]["train"]["missing"]) == (80, 80)
    assert facts["teacher"] == "random-text" and facts["free"] > 0
    rates = facts["rows_per_second"]
    assert set(rates) == {"decoding", "the teacher", "writing"} and min(rates.values()) > 0
    assert facts["limit"] == min(rates, key=rates.get)
    alone = 1 / rates["decoding"] + 1 / rates["the teacher"]  # in one process, one after the other
    assert facts["hours"] == pytest.approx(100 * max(alone, 1 / rates["writing"]) / 3600, rel=0.01)


@pytest.mark.parametrize(
    ("rates", "ahead", "limit", "seconds"),
    [
        ((50.0, 200.0, 1000.0), True, "decoding", 20),
        ((50.0, 200.0, 1000.0), False, "decoding", 25),
        ((200.0, 10.0, 1000.0), True, "the teacher", 100),
        ((200.0, 100.0, 5.0), False, "writing", 200),
    ],
)
def test_the_limit_and_the_hours(rates, ahead, limit, seconds):
    names = ("decoding", "the teacher", "writing")
    verdict = dry_run._verdict(dict(zip(names, rates, strict=True)), 1000, ahead=ahead)
    assert verdict["limit"] == limit
    assert verdict["hours"] * 3600 == pytest.approx(seconds)
    assert {"decoding": "--workers", "the teacher": "--batch-size", "writing": "disk"}[limit] in verdict["advice"]


def test_a_rate_leaves_out_the_first_steps_and_ends_in_time(monkeypatch):
    clock = iter([0.0, 100.0, 200.0, 201.0, 202.0, 220.0, 999.0])
    monkeypatch.setattr(dry_run.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(dry_run, "_SECONDS", 10.0)
    assert dry_run._rate([7, 7, 10, 10, 20, 1000]) == 40 / 20


def test_only_what_is_missing_counts(tmp_path, small_shards):
    out = tmp_path / "cache"
    for event in (run := extract_cache(**TEXTS, out=out)):
        if isinstance(event, Advance) and event.stage == "extract train" and event.done >= 40:
            run.close()
    before = everything(tmp_path)
    first = written(out)
    records = [json.loads(path.read_bytes()) for path in out.glob("train/random-text/_commits/*")]
    left = 80 - sum(stop - start for start, stop in (record["rows"] for record in records))
    assert 0 < left < 80
    facts = finish(extract_cache(**TEXTS, out=out, dry_run=True))
    assert everything(tmp_path) == before
    assert facts["splits"]["train"]["missing"] == left and facts["splits"]["test"]["missing"] == 20
    assert sum(facts["bytes_by_array"]["train/rows"].values()) == 0
    finish(extract_cache(**TEXTS, out=out))
    last = written(out)
    for part, sizes in last[0].items():
        assert facts["bytes_by_array"][part] == {
            name: size - first[0].get(part, {}).get(name, 0) for name, size in sizes.items()
        }
    assert facts["files"] == last[2] - first[2]
    done = finish(extract_cache(**TEXTS, out=out, dry_run=True))
    assert (done["bytes"], done["files"], done["hours"]) == (0, 0, 0)
    assert "rows_per_second" not in done and done["splits"]["train"]["missing"] == 0


def disk(free):
    return lambda path: shutil._ntuple_diskusage(10**9, 10**9 - free, free)


def test_no_room_is_said_before_anything_is_written(tmp_path, monkeypatch):
    needed = finish(extract_cache(**TEXTS, out=tmp_path / "a" / "cache", dry_run=True))["bytes"]
    for free, dry in ((needed - 1, True), (needed - 1, False)):
        monkeypatch.setattr(shutil, "disk_usage", disk(free))
        with pytest.raises(DiskFullError, match=f"needs {needed:,} bytes more, and {free:,} are free") as error:
            finish(extract_cache(**TEXTS, out=tmp_path / "a" / "cache", dry_run=dry))
        assert error.value.exit_code == 6 and everything(tmp_path) == []
    monkeypatch.setattr(shutil, "disk_usage", disk(needed))
    finish(extract_cache(**TEXTS, out=tmp_path / "a" / "cache"))


def test_it_refuses_what_the_real_run_would(tmp_path, text_cache):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter").touch()
    with pytest.raises(UsageError, match="is not a cache and not empty"):
        finish(extract_cache(**TEXTS, out=tmp_path / "full", dry_run=True))
    for below in ("", "new"):
        with pytest.raises(UsageError, match="letter is a file"):
            finish(extract_cache(**TEXTS, out=tmp_path / "full" / "letter" / below, dry_run=True))
    with pytest.raises(IdentityError):
        finish(extract_cache(**TEXTS, out=text_cache, dry_run=True))
    assert everything(tmp_path) == ["full", "full/letter"]


def test_a_folder_that_nobody_may_write_to(tmp_path, monkeypatch):
    """The disk beside --out cannot be tried then, so the system's own folder is."""
    tried = []

    def refuse(prefix, dir=None):
        tried.append(dir)
        if dir is not None:
            raise PermissionError(13, "Permission denied")
        return real(prefix=prefix)

    real = dry_run.tempfile.TemporaryDirectory
    monkeypatch.setattr(dry_run.tempfile, "TemporaryDirectory", refuse)
    facts = finish(extract_cache(**TEXTS, out=tmp_path / "x" / "cache", dry_run=True))
    assert tried == [tmp_path, None] and facts["rows_per_second"]["writing"] > 0


def messages(run):
    return [event.text for event in run if isinstance(event, Message)]


def test_a_run_that_goes_on_does_not_measure_again(tmp_path, small_shards):
    options = {**TEXTS, "encode": {"embedding": "int8"}}
    run = extract_cache(**options, out=tmp_path / "cache")
    for event in run:
        if isinstance(event, Advance) and event.stage == "extract train" and event.done >= 40:
            run.close()
    parts = {path: path.read_bytes() for path in tmp_path.rglob("part.json")}
    said = messages(extract_cache(**options, out=tmp_path / "cache"))
    assert "measuring what the encodings of test cost" in said
    assert "measuring what the encodings of train cost" not in said
    assert all(path.read_bytes() == data for path, data in parts.items())
    found = open_cache(tmp_path / "cache").split().read(np.arange(80))["embedding"]
    assert found.isfinite().all()
    with pytest.raises(IdentityError) as error:
        finish(extract_cache(**{**TEXTS, "encode": {"embedding": "int8:row"}}, out=tmp_path / "cache"))
    assert [name for name, _, _ in error.value.fields] == ["encodings.embedding"]


def test_costs_are_measured_and_shown(tmp_path):
    options = {**TEXTS, "encode": {"embedding": "int8", "logits": "topk:3@1,2"}}
    finish(extract_cache(**options, out=tmp_path / "cache"))
    shown = describe_cache(tmp_path / "cache")["splits"]["train"]["random-text"]["outputs"]
    cost = open_cache(tmp_path / "cache").split().teacher_part("logits").provenance["encoding_cost"]["logits"]
    mass = cost["mass"]
    assert shown["embedding"].startswith("[24] int8:") and ": cosine 0.9999" in shown["embedding"]
    assert f"probability kept {mass['1']:.3g} at T=1, {mass['2']:.3g} at T=2, on 80 rows" in shown["logits"]
