"""Joining by key, batches by seed and step, and samples that are not those of the teacher."""

import numpy as np
import pytest
import torch

from featurecache.errors import CorruptCacheError, FeatureCacheError, IdentityError, UsageError
from featurecache.types import NO_LABEL, SparseLogits
from student.data import CachedData
from student.join import join
from tests.small_caches import Texts, sentences, teacher, teacher_says, write_cache

TEXTS = sentences(40)
CLASS_NAMES = ("red", "green", "blue")
LABELS = {key: CLASS_NAMES[len(text) % 3] for key, text in TEXTS.items()}
OUTPUTS = ("embedding", "logits")


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    return write_cache(tmp_path_factory.mktemp("cache"), Texts(TEXTS, LABELS, CLASS_NAMES)).split("train")


def shuffled(texts, seed=3):
    keys = list(texts)
    return {keys[at]: texts[keys[at]] for at in np.random.default_rng(seed).permutation(len(keys))}


def cached(reader, source, *, outputs=OUTPUTS, **options):
    joined = join(reader, source, outputs, missing="skip", max_invalid=1.0)
    return CachedData(
        source,
        teacher().input,
        samples=joined.samples,
        labels=joined.labels,
        rows=joined.rows,
        reader=reader,
        outputs=outputs,
        **options,
    )


def byte_values():
    """What each token id of the byte tokenizer stands for."""
    tokenizer = teacher().input.tokenizer
    return {tokenizer.encode(chr(code)).ids[0]: chr(code) for code in range(32, 127)}


@pytest.mark.parametrize("subset", [slice(None), slice(5, 20)])
def test_any_order_and_subset_meets_its_own_rows(reader, subset):
    texts = dict(list(shuffled(TEXTS).items())[subset])
    source = Texts(texts, LABELS, CLASS_NAMES)
    joined = join(reader, source, OUTPUTS)
    assert sorted(source.keys[at] for at in joined.samples) == sorted(texts)
    assert [reader.keys[row] for row in joined.rows] == [source.keys[at] for at in joined.samples]
    assert (np.diff(joined.rows) > 0).all()
    assert [CLASS_NAMES[label] for label in joined.labels] == [LABELS[source.keys[at]] for at in joined.samples]
    assert (joined.invalid, joined.missing, joined.changed_labels) == (0, 0, 0)


def test_batches_hold_each_samples_own_input_target_and_label(reader):
    source = Texts(shuffled(TEXTS), LABELS, CLASS_NAMES)
    characters, seen = byte_values(), []
    for batch in cached(reader, source).shuffled(7, seed=0, start=0, stop=5):
        for at, row in enumerate(batch.rows.tolist()):
            key = reader.keys[row]
            ids = batch.inputs["ids"][at][batch.inputs["mask"][at]].tolist()
            assert "".join(characters[number] for number in ids) == TEXTS[key]
            assert CLASS_NAMES[batch.labels[at]] == LABELS[key]
            expected = teacher_says(TEXTS[key])
            for name in OUTPUTS:
                torch.testing.assert_close(batch.targets[name][at], expected[name], rtol=1e-5, atol=1e-6)
            seen.append(key)
    assert len(set(seen)) == len(seen) == 35


def test_samples_that_the_cache_lacks_are_refused_or_skipped(reader):
    source = Texts({"new-1": "a new text", **shuffled(TEXTS), "new-2": "another"})
    with pytest.raises(UsageError, match="2 of 42 samples are not in the cache, such as 'new-1'") as caught:
        join(reader, source, OUTPUTS)
    assert "--missing skip" in caught.value.hint
    joined = join(reader, source, OUTPUTS, missing="skip")
    assert joined.missing == 2 and joined.rows.tolist() == list(range(40))
    assert {source.keys[at] for at in joined.samples} == set(TEXTS)


def test_nothing_in_common_is_refused(reader):
    with pytest.raises(UsageError, match="no usable sample in common"):
        join(reader, Texts({"other": "x"}), OUTPUTS, missing="skip")


@pytest.mark.parametrize("outputs", [OUTPUTS, ("logits",), ()])
def test_invalid_rows_are_left_out_and_counted(tmp_path, outputs):
    texts = {**TEXTS, "key-003": "", "key-011": "  "}
    source = Texts(texts, LABELS, CLASS_NAMES)
    reader = write_cache(tmp_path, source).split("train")
    joined = join(reader, source, outputs, max_invalid=0.05)
    assert joined.invalid == 2 and len(joined.rows) == 38
    assert not {"key-003", "key-011"} & {source.keys[at] for at in joined.samples}
    with pytest.raises(UsageError, match=r"2 of 40 rows are invalid, more than --max-invalid 4.00%"):
        join(reader, source, outputs, max_invalid=0.04)
    batches = list(cached(reader, source, outputs=outputs).in_order(16))
    assert sum(len(batch.rows) for batch in batches) == 38
    assert all(batch.targets[name].isfinite().all() for batch in batches for name in outputs)


def test_changed_labels_are_counted_and_the_sources_win(reader):
    labels = {**LABELS, "key-001": "red", "key-002": "red", "key-003": "green"}
    changed = sum(labels[key] != LABELS[key] for key in labels)
    source = Texts(shuffled(TEXTS), labels, CLASS_NAMES)
    joined = join(reader, source, OUTPUTS)
    assert joined.changed_labels == changed > 0
    assert {
        source.keys[at]: CLASS_NAMES[label] for at, label in zip(joined.samples, joined.labels, strict=True)
    } == labels


def test_labels_are_compared_by_class_name_not_by_number(reader):
    source = Texts(TEXTS, LABELS, ("blue", "green", "red", "a further one"))
    joined = join(reader, source, OUTPUTS)
    assert joined.changed_labels == 0
    assert [source.class_names[label] for label in joined.labels] == [LABELS[reader.keys[row]] for row in joined.rows]
    unlabelled = {key: name for key, name in LABELS.items() if key != "key-005"}
    joined = join(reader, Texts(TEXTS, unlabelled, CLASS_NAMES), OUTPUTS)
    assert joined.changed_labels == 1 and (joined.labels == NO_LABEL).sum() == 1
    renamed = {key: name.upper() for key, name in LABELS.items()}
    assert join(reader, Texts(TEXTS, renamed, ("RED", "GREEN", "BLUE")), OUTPUTS).changed_labels == 40


def rows_of(batches):
    return [batch.rows.tolist() for batch in batches]


def test_a_batch_is_a_function_of_seed_and_step(reader):
    data = cached(reader, Texts(shuffled(TEXTS), LABELS, CLASS_NAMES), bank_rows=4)
    whole = list(data.shuffled(8, seed=5, start=0, stop=15))
    later = list(data.shuffled(8, seed=5, start=7, stop=15))
    other_order = cached(reader, Texts(shuffled(TEXTS, 9), LABELS, CLASS_NAMES), bank_rows=4)
    assert rows_of(whole[7:]) == rows_of(later)
    assert rows_of(whole) == rows_of(other_order.shuffled(8, seed=5, start=0, stop=15))
    for one, two in zip(whole[7:], later, strict=True):
        assert torch.equal(one.bank["embedding"], two.bank["embedding"])
        assert torch.equal(one.inputs["ids"], two.inputs["ids"])
    assert rows_of(whole) != rows_of(data.shuffled(8, seed=6, start=0, stop=15))
    assert rows_of(whole[:5]) != rows_of(whole[5:10])


def test_an_epoch_holds_no_row_twice_and_full_batches_only(reader):
    data = cached(reader, Texts(TEXTS))
    assert data.steps_per_epoch(12) == 3 and data.steps_per_epoch(41) == 1
    epochs = rows_of(data.shuffled(12, seed=0, start=0, stop=6))
    assert all(len(rows) == 12 for rows in epochs)
    for epoch in (epochs[:3], epochs[3:]):
        assert len({row for rows in epoch for row in rows}) == 36
    assert [len(rows) for rows in rows_of(data.shuffled(64, seed=0, start=0, stop=2))] == [40, 40]


def test_in_order_covers_each_row_once(reader):
    data = cached(reader, Texts(shuffled(TEXTS)))
    assert [row for rows in rows_of(data.in_order(7)) for row in rows] == list(range(40))
    assert [len(rows) for rows in rows_of(data.in_order(7))] == [7] * 5 + [5]


def test_loader_processes_change_nothing(reader):
    one = cached(reader, Texts(shuffled(TEXTS), LABELS, CLASS_NAMES))
    two = cached(reader, Texts(shuffled(TEXTS), LABELS, CLASS_NAMES), workers=2)
    steps = {"seed": 1, "start": 0, "stop": 6}
    for left, right in zip(one.shuffled(8, **steps), two.shuffled(8, **steps), strict=True):
        assert torch.equal(left.rows, right.rows) and torch.equal(left.inputs["ids"], right.inputs["ids"])
        assert torch.equal(left.targets["logits"], right.targets["logits"])


def test_the_bank_is_of_other_rows(reader):
    data = cached(reader, Texts(shuffled(TEXTS), LABELS, CLASS_NAMES), bank_rows=10)
    vectors = reader.read(np.arange(40), outputs=["embedding"])["embedding"]
    banks = set()
    for batch in data.shuffled(8, seed=0, start=0, stop=10):
        assert batch.bank["embedding"].shape == (10, 6)
        rows = [int((vectors == vector).all(1).nonzero()) for vector in batch.bank["embedding"]]
        assert len(set(rows)) == 10 and not set(rows) & set(batch.rows.tolist())
        assert batch.bank_labels.tolist() == [data.labels[data.rows.tolist().index(row)] for row in rows]
        banks.add(tuple(sorted(rows)))
    assert len(banks) == 10


def test_a_bank_is_never_more_than_there_are_rows_left(reader):
    data = cached(reader, Texts(TEXTS), bank_rows=1000)
    batch = next(data.shuffled(8, seed=0, start=0, stop=1))
    assert len(batch.bank["embedding"]) == 32
    assert all(not batch.bank for batch in data.in_order(8))


def test_only_some_positions(reader):
    data = cached(reader, Texts(shuffled(TEXTS), LABELS, CLASS_NAMES))
    part = data.only(np.array([3, 5, 8]))
    batch = next(part.in_order(10))
    assert len(part) == 3 and batch.rows.tolist() == [3, 5, 8]
    assert [CLASS_NAMES[label] for label in batch.labels] == [LABELS[reader.keys[row]] for row in (3, 5, 8)]


def test_sparse_logits_come_sparse(tmp_path):
    source = Texts(TEXTS)
    reader = write_cache(tmp_path, source, encode={"logits": "topk:2"}).split("train")
    batch = next(cached(reader, source, bank_rows=3).shuffled(4, seed=0, start=0, stop=1))
    logits = batch.targets["logits"]
    assert isinstance(logits, SparseLogits) and logits.indices.shape == (4, 2)
    for at, row in enumerate(batch.rows.tolist()):
        expected = teacher_says(TEXTS[reader.keys[row]])["logits"].topk(2)
        assert logits.indices[at].tolist() == expected.indices.tolist()
    assert list(batch.bank) == ["embedding"]


def test_changed_bytes_stop_training_and_name_the_key(reader):
    data = cached(reader, Texts({**TEXTS, "key-017": TEXTS["key-017"].replace("word", "Word")}))
    with pytest.raises(IdentityError, match="sample 'key-017' is not what the teacher saw: its bytes differ"):
        list(data.in_order(8))


def test_a_sample_that_only_the_teacher_could_decode_is_named(reader, monkeypatch):
    data = cached(reader, Texts(TEXTS))
    monkeypatch.setattr("featurecache.loader.decode", broken_for(TEXTS["key-020"]))
    with pytest.raises(FeatureCacheError, match="'key-020' was decoded for the teacher and cannot be decoded here"):
        list(data.in_order(8))


def broken_for(text):
    from featurecache.errors import BadSampleError
    from featurecache.sources.decode import decode
    from featurecache.types import Reason

    def decode_others(sample, modality):
        if sample.encoded.decode() == text:
            raise BadSampleError(Reason.CORRUPT_IMAGE)
        return decode(sample, modality)

    return decode_others


def test_without_a_cache_there_are_labels_only_and_bad_samples_are_left_out():
    texts = {"a": "one", "b": "", "c": "three", "d": " ", "e": " "}
    source = Texts(texts, {"a": "red", "b": "red", "c": "blue"}, CLASS_NAMES)
    data = CachedData(source, teacher().input, samples=np.arange(5), labels=source.labels)
    batches = list(data.in_order(3))
    assert [batch.labels.tolist() for batch in batches] == [[0, 2]]
    assert batches[0].rows.tolist() == [0, 2] and not batches[0].targets


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of 4 in groups of 2: five groups of the 40 rows."""
    monkeypatch.setattr("student.steps.BLOCK", 4)
    monkeypatch.setattr("student.steps.GROUP", 2)


def test_in_blocks_each_row_comes_once_an_epoch_and_a_resumed_run_goes_on(reader, small_blocks):
    data = cached(reader, Texts(shuffled(TEXTS)), shuffle="blocks", bank_rows=3)
    whole = list(data.shuffled(6, seed=5, start=0, stop=12))
    for epoch in (whole[:6], whole[6:]):
        assert len({row for rows in rows_of(epoch) for row in rows}) == 36
    assert rows_of(whole[:6]) != rows_of(whole[6:])
    assert rows_of(whole) != rows_of(cached(reader, Texts(TEXTS)).shuffled(6, seed=5, start=0, stop=12))
    for start in (1, 5, 6, 9):
        later = list(data.shuffled(6, seed=5, start=start, stop=12))
        assert rows_of(later) == rows_of(whole[start:])
        for one, two in zip(whole[start:], later, strict=True):
            assert torch.equal(one.bank["embedding"], two.bank["embedding"])
            assert torch.equal(one.targets["logits"], two.targets["logits"])


def test_each_group_is_fetched_before_it_is_used_and_not_much_sooner(reader, small_blocks, monkeypatch):
    told = []
    monkeypatch.setattr(
        type(reader), "will_need", lambda self, rows, **options: told.append((rows.tolist(), options["outputs"]))
    )
    data = cached(reader, Texts(shuffled(TEXTS)), shuffle="blocks")
    used = []
    for batch in data.shuffled(5, seed=1, start=0, stop=16):
        used += batch.rows.tolist()
        fetched = [row for rows, _ in told for row in rows]
        epoch = len(used) // 40 * 40
        assert fetched[epoch : len(used)] == used[epoch:]
        assert len(fetched) <= len(used) + 8 + 8
    assert [len(rows) for rows, _ in told] == [8] * 10 and all(outputs == OUTPUTS for _, outputs in told)
    told.clear()
    next(data.shuffled(5, seed=1, start=4, stop=16))  # a run that goes on at position 20, in the third group
    assert told[0][0] == used[16:24]


def test_a_bank_of_blocks_is_of_rows_that_are_in_memory(reader, small_blocks):
    data = cached(reader, Texts(shuffled(TEXTS)), shuffle="blocks", bank_rows=4)
    vectors = reader.read(np.arange(40), outputs=["embedding"])["embedding"]
    used = [row for batch in data.shuffled(4, seed=1, start=0, stop=10) for row in batch.rows.tolist()]
    for step, batch in enumerate(data.shuffled(4, seed=1, start=0, stop=10)):
        bank = [int((vectors == vector).all(1).nonzero()) for vector in batch.bank["embedding"]]
        near = min(step * 4, 40 - 8)
        assert len(set(bank)) == 4 and set(bank) <= set(used[near : near + 8]) - set(batch.rows.tolist())


def test_the_shuffle_follows_the_memory_there_is(reader, monkeypatch):
    source = Texts(TEXTS)
    # 40 rows of 11 float32 are 1,760 bytes, which is 0.6 of 2,933.3
    for available, shuffle in ((2934, "global"), (2933, "blocks"), (None, "global")):
        monkeypatch.setattr("student.data.available_memory", lambda found=available: found)
        data = cached(reader, source)
        assert data.shuffle == shuffle == data.only(np.arange(5)).shuffle
        assert cached(reader, source, shuffle="global").shuffle == "global"
    monkeypatch.setattr("student.data.available_memory", lambda: 1467)
    assert cached(reader, Texts(dict(list(TEXTS.items())[:20]))).shuffle == "global"  # half the rows
    assert CachedData(source, teacher().input, samples=np.arange(5), labels=source.labels[:5]).shuffle == "global"


def test_batches_that_are_kept_do_not_change(reader, monkeypatch):
    monkeypatch.setattr("featurecache.store.gather._INLINE_BYTES", 0)  # read ahead, into the ring of buffers
    kept = list(cached(reader, Texts(shuffled(TEXTS))).shuffled(8, seed=0, start=0, stop=10))
    for batch in kept:
        assert torch.equal(batch.targets["embedding"], reader.read(batch.rows.numpy())["embedding"])


def test_damaged_targets_stop_training(tmp_path):
    source = Texts(TEXTS)
    cache = write_cache(tmp_path, source)
    (path,) = (tmp_path / "train").glob("*/embedding/c/0/0/0")
    path.chmod(0o644)
    path.write_bytes(b"\1" + path.read_bytes()[1:])
    with pytest.raises(CorruptCacheError, match="embedding are not what was committed"):
        list(cached(cache.split("train"), source).shuffled(8, seed=0, start=0, stop=5))


@pytest.mark.parametrize("label", [99, 3, -2])
def test_a_stored_label_that_no_class_has(tmp_path, label):
    source = Texts(TEXTS, LABELS, CLASS_NAMES)
    source.labels[7] = label
    reader = write_cache(tmp_path, source).split("train")
    with pytest.raises(CorruptCacheError, match="train/rows/label has numbers beyond its 3 classes"):
        join(reader, Texts(TEXTS, LABELS, CLASS_NAMES), OUTPUTS)
