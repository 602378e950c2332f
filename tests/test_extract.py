import gc
import tracemalloc

import numpy as np
import pytest
import torch

import featurecache.extract as extraction
from featurecache import background
from featurecache.errors import BadSampleError, DiskFullError, IdentityError, UnknownNameError, UsageError
from featurecache.extract import extract
from featurecache.forward import Forward
from featurecache.inputs import ImageInput
from featurecache.loader import load
from featurecache.plan import plan_part
from featurecache.rows import list_rows
from featurecache.sources.decode import decode
from featurecache.sources.synthetic import SyntheticImages, SyntheticTexts
from featurecache.store import layout
from featurecache.store.reader import open_cache
from featurecache.store.seals import seal
from featurecache.store.writer import CacheWriter, ShardWriter, create_cache
from featurecache.teachers.random_projection import RandomProjection
from featurecache.types import Reason
from tests.bad_data import Encoded, images_with_a_truncated_one, texts_with_bad_ones


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def small_shards(monkeypatch):
    """Shards of 32 rows, so that few rows make several."""
    monkeypatch.setattr(layout, "_MAX_SHARD_BYTES", 32 * 16 * 4)


class Counting(RandomProjection):
    """The random teacher; counts the rows it was given, and fails or answers with NaN on demand."""

    def __init__(self, *args, fail_after=None, **kwargs):
        super().__init__(*args, **kwargs)
        self.rows, self.fail_after = 0, fail_after

    def __call__(self, batch):
        if self.fail_after is not None and self.rows >= self.fail_after:
            raise RuntimeError("the GPU fell off the bus")
        self.rows += len(next(iter(batch.values())))
        return super().__call__(batch)


PLAN = {"encode": {"embedding": "float32", "logits": "topk:3@1"}}


def run(path, source, teacher=None, *, plan=PLAN, split="train", **options):
    """List the rows, extract, and yield what extract yields."""
    teacher = teacher or Counting(source.modality, dim=16, classes=5)
    objects = create_cache(path, source={})
    for _ in list_rows(source, objects, split):
        pass
    yield from extract(teacher, source, objects, plan_part(teacher, source, split, **plan), **options)


def payloads(path):
    """Every shard file of the teachers, by its place in the cache."""
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("c/**/*") if p.is_file()}


def files(path):
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


@pytest.mark.parametrize("kind", ["images", "texts", "folder", "bad"])
@pytest.mark.parametrize("encoding", ["float32", "float16"])
def test_rows_are_the_teacher_on_each_sample_alone(tmp_path, kind, encoding):
    source = {
        "images": lambda: SyntheticImages(20),
        "texts": lambda: SyntheticTexts(50),
        "folder": lambda: images_with_a_truncated_one(tmp_path / "images"),
        "bad": texts_with_bad_ones,
    }[kind]()
    plan = {"encode": {"embedding": encoding, "logits": encoding}}
    *_, last = run(tmp_path / "cache", source, plan=plan, batch_size=3)
    teacher = RandomProjection(source.modality, dim=16, classes=5)
    reader = open_cache(tmp_path / "cache").split()
    found = reader.read(np.arange(len(source)))
    reasons = []
    for row in range(len(source)):
        try:
            data = decode(source[row], source.modality)
        except BadSampleError as error:
            reasons.append(error.reason)
            assert found["embedding"][row].isnan().all() and found["logits"][row].isnan().all()
            continue
        reasons.append(Reason.VALID)
        alone = teacher(teacher.input.collate([teacher.input.prepare(data)]))
        tolerance = 1e-3 if encoding == "float16" else 1e-5
        for name, values in found.items():
            torch.testing.assert_close(values[row], alone[name][0], rtol=tolerance, atol=tolerance)
    assert reader.reasons("embedding").tolist() == reasons
    assert reader.valid().tolist() == [reason is Reason.VALID for reason in reasons]
    bad = [reason for reason in reasons if reason]
    assert (last.done, last.total) == (len(source), len(source))
    assert last.invalid == {reason: bad.count(reason) for reason in bad}
    assert {"images": 0, "texts": 0, "folder": 1, "bad": 3}[kind] == len(bad)


@pytest.mark.parametrize("kind", [SyntheticImages, SyntheticTexts])
def test_worker_processes_change_no_byte(tmp_path, kind, small_shards):
    for workers in (0, 2):
        list(run(tmp_path / str(workers), kind(70), workers=workers, batch_size=8))
    assert payloads(tmp_path / "0") == payloads(tmp_path / "2") and len(payloads(tmp_path / "0")) > 10


def test_batch_size_only_changes_last_bits(tmp_path, small_shards):
    source, read = SyntheticTexts(70), []
    for size in (1, 7, 64):
        list(run(tmp_path / str(size), source, plan={"encode": {"embedding": "float32"}}, batch_size=size))
        read.append(open_cache(tmp_path / str(size)).split().read(np.arange(70)))
    for other in read[1:]:
        torch.testing.assert_close(other["embedding"], read[0]["embedding"], rtol=1e-5, atol=1e-5)


def test_texts_of_very_different_length_keep_their_rows(tmp_path):
    source = Encoded([b"word " * length for length in (20, 1, 9, 3, 15, 2, 11)])
    list(run(tmp_path, source, batch_size=2))
    teacher = RandomProjection("text", dim=16, classes=5)
    found = open_cache(tmp_path).split().read(np.arange(7))["embedding"]
    for row in range(7):
        item = teacher.input.prepare(source.contents[row].decode())
        torch.testing.assert_close(found[row], teacher(teacher.input.collate([item]))["embedding"][0])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e6])
def test_an_output_that_is_not_finite_in_its_encoding(tmp_path, bad):
    class Overflowing(RandomProjection):
        def __call__(self, batch):
            outputs = {name: values.clone() for name, values in super().__call__(batch).items()}
            outputs["logits"][1, 2] = bad
            return outputs

    teacher = Overflowing("text", dim=16, classes=5)
    *_, last = run(tmp_path, SyntheticTexts(6), teacher, plan={}, batch_size=6)
    reader = open_cache(tmp_path).split()
    (row,) = np.flatnonzero(~reader.valid())  # texts are sorted by length, so it is not row 1
    assert reader.reasons("logits")[row] == Reason.NOT_FINITE and last.invalid == {Reason.NOT_FINITE: 1}
    found = reader.read(np.arange(6))
    assert all(found[name].isnan().all(1).tolist() == [n == row for n in range(6)] for name in found)


def interrupt_close(path, source, monkeypatch):
    running = run(path, source, batch_size=5)
    for progress in running:
        if progress.done >= 45:
            break
    running.close()


def interrupt_teacher(path, source, monkeypatch):
    with pytest.raises(RuntimeError, match="fell off the bus"):
        list(run(path, source, Counting("image", dim=16, classes=5, fail_after=75), batch_size=5))


def interrupt_disk(path, source, monkeypatch):
    real, calls = ShardWriter.append, []

    def append(self, rows):
        if "reason" in rows:
            calls.append(1)
            if len(calls) == 14:  # the last batch of the second shard; the disk has room again at once
                raise DiskFullError("cannot write: no space left")
        real(self, rows)

    with monkeypatch.context() as patched:
        patched.setattr(ShardWriter, "append", append)
        with pytest.raises(DiskFullError):
            list(run(path, source, batch_size=5))


@pytest.mark.parametrize("interrupt", [interrupt_close, interrupt_teacher, interrupt_disk])
def test_an_interrupted_run_goes_on_to_the_same_bytes(tmp_path, monkeypatch, small_shards, interrupt):
    source = SyntheticImages(100)
    list(run(tmp_path / "whole", source, batch_size=5))
    interrupt(tmp_path / "cut", source, monkeypatch)
    assert list((tmp_path / "cut/_tmp").iterdir()) == []
    before = payloads(tmp_path / "cut")
    committed = list((tmp_path / "cut/train/random-image/_commits").iterdir())
    assert 1 <= len(committed) < 4
    teacher = Counting("image", dim=16, classes=5)
    *_, last = run(tmp_path / "cut", source, teacher, batch_size=5)
    assert teacher.rows == 100 - 32 * len(committed)
    assert last.done == last.total == 100
    assert payloads(tmp_path / "cut") == payloads(tmp_path / "whole")
    assert before.items() <= payloads(tmp_path / "whole").items()
    again = Counting("image", dim=16, classes=5)
    assert [step.done for step in run(tmp_path / "cut", source, again)] == [100] and again.rows == 0


@pytest.mark.parametrize("workers", [0, 1])
def test_two_runs_share_the_work(tmp_path, small_shards, workers):
    source = SyntheticImages(200)  # seven shards
    list(run(tmp_path / "alone", source, batch_size=8))
    teachers = [Counting("image", dim=16, classes=5) for _ in range(2)]
    runs = [run(tmp_path / "shared", source, teacher, batch_size=8, workers=workers) for teacher in teachers]
    steps = [[], []]
    for number in [0, 1] * 1000:  # taking turns
        if (step := next(runs[number], None)) is not None:
            steps[number].append(step)
    assert sum(teacher.rows for teacher in teachers) == 200 and all(teacher.rows >= 64 for teacher in teachers)
    assert [(found[-1].done, found[-1].total) for found in steps] == [(200, 200)] * 2
    assert payloads(tmp_path / "shared") == payloads(tmp_path / "alone")
    assert not [path for path in (tmp_path / "shared/_claims").rglob("*") if path.is_file()]


def test_on_a_gpu_the_rows_wait_for_the_stream_that_copies_them(tmp_path, monkeypatch):
    """Not for that of the current device, which is another one where the teacher runs on cuda:1."""
    asked = []

    class Event:
        def record(self, stream):
            asked.append(("record", stream))

        def synchronize(self):
            asked.append("synchronize")

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: f"stream of {device}")
    source = SyntheticImages(4)
    teacher = Counting("image", dim=16, classes=5)
    writer = CacheWriter(create_cache(tmp_path, source={}), plan_part(teacher, source, "train", **PLAN))
    forward = Forward(teacher)
    forward.device = torch.device("cuda:1")
    monkeypatch.setattr(forward, "_moved", lambda batch: batch)
    encoded = extraction.Encoded(forward, writer)
    (batch,) = load(source, teacher.input, [np.arange(4)])
    rows = encoded(batch)
    assert asked == [("record", "stream of cuda:1")]
    assert rows()[0]["valid"].tolist() == [1] * 4 and asked[1:] == ["synchronize"]


def test_a_run_that_has_nothing_to_do_waits_for_the_others(tmp_path, small_shards, monkeypatch):
    source = SyntheticImages(50)  # two shards
    first, second = (run(tmp_path, source, batch_size=8) for _ in range(2))
    naps = []
    monkeypatch.setattr(extraction.time, "sleep", lambda seconds: naps.append(seconds) or next(first, None))
    assert not next(first).is_waiting and next(first).done == 8  # it has the first shard, and goes on in the naps
    steps = list(second)
    assert [step.done for step in steps if not step.is_waiting] == [0, 8, 16, 18, 50]
    assert len(naps) == len([step for step in steps if step.is_waiting]) >= 3


def test_what_is_lost_by_stopping_is_told(tmp_path, small_shards):
    steps = list(run(tmp_path, SyntheticImages(70), batch_size=10))  # shards of 32, 32 and 6 rows
    assert [(step.done, step.until_safe) for step in steps] == [
        (0, 0),
        *[(10, 22), (20, 12), (30, 2), (32, 0)],
        *[(42, 22), (52, 12), (62, 2), (64, 0)],
        (70, 0),
        (70, 0),
    ]


@pytest.mark.parametrize("batches", [1, 4, 5, 8])
def test_a_shard_that_was_full_is_kept_when_a_run_is_closed(tmp_path, small_shards, batches, monkeypatch):
    monkeypatch.setattr(background, "_MOST_UNWRITTEN", 1000)
    running = run(tmp_path, SyntheticImages(100), batch_size=8)
    for _ in range(1 + batches):
        next(running)
    running.close()
    assert len(list((tmp_path / "train/random-image").rglob("_commits/*.json"))) == batches // 4
    assert not [path for folder in ("_tmp", "_claims") for path in (tmp_path / folder).rglob("*") if path.is_file()]


def test_a_batch_that_could_not_be_written_leaves_no_gap(tmp_path, monkeypatch, small_shards):
    # 32 rows in 8 batches: the last one of a shard fails, and the first of the next would fill its place
    real, calls = ShardWriter.append, []

    def append(self, rows):
        if "reason" in rows:
            calls.append(1)
            if len(calls) == 8:
                raise DiskFullError("cannot write")
        real(self, rows)

    monkeypatch.setattr(ShardWriter, "append", append)
    monkeypatch.setattr(background, "_MOST_UNWRITTEN", 1000)
    monkeypatch.setattr(background.Future, "done", lambda self: False)  # the caller notices only at the end
    with pytest.raises(DiskFullError):
        list(run(tmp_path, SyntheticImages(100), batch_size=4))
    assert len(calls) == 8
    assert not (tmp_path / "train/random-image/_commits").exists()


class Other(RandomProjection):
    """The random teacher with another input size."""

    def __init__(self):
        super().__init__("image", dim=16, classes=5)
        self.input = ImageInput(size=16, crop_pct=0.5, interpolation="bilinear")


@pytest.mark.parametrize(
    ("teacher", "plan", "field"),
    [
        (RandomProjection("image", dim=16, classes=5, seed=1), {}, "teacher.weights_sha256"),
        (Other(), {}, "input.crop_pct"),
        (None, {"precision": "bfloat16"}, "precision"),
        (None, {"outputs": ["embedding"]}, "encodings.logits"),
        (None, {"encode": {"embedding": "float32"}}, "encodings.embedding"),
        (None, {"encode": {"logits": "topk:2"}}, "encodings.logits"),
    ],
)
def test_another_identity_is_refused_before_anything_is_written(tmp_path, teacher, plan, field):
    source = SyntheticImages(10)
    first = RandomProjection("image", dim=16, classes=5)
    list(run(tmp_path, source, first, plan={}))
    before = files(tmp_path)
    with pytest.raises(IdentityError) as error:
        list(run(tmp_path, source, teacher or first, plan=plan))
    assert [name for name, _, _ in error.value.fields] == [field]
    assert files(tmp_path) == before


def test_other_data_are_refused_before_anything_is_written(tmp_path):
    teacher = RandomProjection("text", dim=16)
    objects = create_cache(tmp_path, source={})
    list(list_rows(Encoded([b"one", b"two"]), objects, "train"))
    before = files(tmp_path)
    other = Encoded([b"one", b"three"])
    with pytest.raises(IdentityError) as error:
        list(extract(teacher, other, objects, plan_part(teacher, other, "train")))
    assert [name for name, _, _ in error.value.fields] == ["fingerprint"]
    assert files(tmp_path) == before


def test_data_that_change_under_way(tmp_path, small_shards):
    source = Encoded([f"text {n:03d}".encode() for n in range(100)])
    running = run(tmp_path, source, batch_size=2)
    next(running)
    source.contents[50] = b"text x50"  # of the same size
    with pytest.raises(IdentityError, match="the bytes of sample 'text-50' are not those the cache lists"):
        list(running)
    committed = [p.name for p in (tmp_path / "train/random-text/_commits").iterdir()]
    assert committed == ["00000-0000000.json"]


def test_a_split_is_added_to_a_sealed_cache(tmp_path):
    list(run(tmp_path, SyntheticTexts(5)))
    seal(create_cache(tmp_path, source={}))
    list(run(tmp_path, SyntheticTexts(6, seed=1), split="test"))
    seal(create_cache(tmp_path, source={}))
    assert open_cache(tmp_path).split("test").read(np.arange(6))["embedding"].isfinite().all()


def test_precision_is_what_the_teacher_computes_in(tmp_path):
    source = SyntheticTexts(20)
    for precision in ("float32", "bfloat16"):
        list(run(tmp_path / precision, source, plan={**PLAN, "precision": precision}))
    exact, rough = (open_cache(tmp_path / name).split().read(np.arange(20)) for name in ("float32", "bfloat16"))
    assert not torch.equal(exact["logits"].values, rough["logits"].values)
    torch.testing.assert_close(exact["logits"].values, rough["logits"].values, rtol=0.05, atol=0.05)


def test_plans_that_cannot_be():
    teacher, source = RandomProjection("text", dim=4, classes=3), SyntheticTexts(3)
    with pytest.raises(UsageError, match="random-text takes texts, and the data are images"):
        plan_part(teacher, SyntheticImages(3), "train")
    with pytest.raises(UnknownNameError, match="did you mean 'bfloat16'"):
        plan_part(teacher, source, "train", precision="bfloat")
    with pytest.raises(UnknownNameError, match="did you mean 'logits'"):
        plan_part(teacher, source, "train", outputs=["logit"])
    with pytest.raises(UsageError, match="--encode names logits, which --outputs leaves out"):
        plan_part(teacher, source, "train", outputs=["embedding"], encode={"logits": "float32"})
    with pytest.raises(UsageError, match="--encode embedding=float16"):
        plan_part(teacher, source, "train", encode={"embedding": "topk:2"})
    for temperature in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="temperatures must be positive"):
            plan_part(teacher, source, "train", temperatures=[1.0, temperature])


@pytest.mark.parametrize(
    ("teacher", "part"),
    [
        ("vit_base_patch16_224.augreg2_in21k_ft_in1k", "vit_base_patch16_224.augreg2_in21k_ft_in1k"),
        ("all-MiniLM-L6-v2", "all-minilm-l6-v2"),
        ("Org/My Model!", "org-my-model"),
        ("42", "teacher-42"),
        ("rows", "teacher-rows"),
        ("assets", "teacher-assets"),
        ("1" * 200, "teacher-" + "1" * 56),
        ("..//..", "teacher-"),
    ],
)
def test_any_name_of_a_teacher_makes_a_part(teacher, part):
    network = RandomProjection("text", dim=4)
    network.name = teacher
    assert plan_part(network, SyntheticTexts(2), "train").name == part


def test_memory_does_not_grow_with_the_rows(tmp_path):
    teacher = RandomProjection("text", dim=512)

    def peak(rows):
        source = Encoded([b"%07d" % n for n in range(rows)])
        for _ in run(tmp_path / f"{rows}-warm", Encoded([b"a", b"b"]), teacher, plan={}):
            pass
        running = run(tmp_path / str(rows), source, teacher, plan={}, batch_size=16)
        next(running)  # rows are listed
        gc.collect()
        tracemalloc.start()
        for _ in running:
            pass
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    small, large = peak(1024), peak(4096)
    assert large < small + 512 * 1024  # the 3,072 rows more have 3 MiB of float16
