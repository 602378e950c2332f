"""Which views are shown when, and labels of what is mixed."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from featurecache.augment import find_augmentation
from featurecache.errors import CorruptCacheError, UsageError
from featurecache.types import NO_LABEL
from student.objectives.base import Batch, Dimensions, Mix
from student.objectives.cross_entropy import CrossEntropy
from student.views import PLAIN, Views
from tests.digesting import digests, students, taught
from tests.sample_inputs import Pictures


@given(per_sample=st.integers(1, 5), turns=st.integers(1, 5), rows=st.integers(1, 60), seed=st.integers(0, 2**31))
def test_each_view_of_a_row_is_seen_once_in_a_round(per_sample, turns, rows, seed):
    views, chosen = Views(per_sample * turns, per_sample), np.arange(rows)
    shown = [views.shown(chosen, rows, seed=seed, epoch=epoch) for epoch in range(turns)]
    assert all(epoch.shape == (rows, per_sample) for epoch in shown)
    every = np.sort(np.concatenate(shown, axis=1), axis=1)
    assert (every == np.arange(per_sample * turns)).all()
    again = views.shown(chosen, rows, seed=seed, epoch=turns)
    assert (again == shown[0]).all()


@given(count=st.integers(1, 16), per_sample=st.integers(1, 16), epoch=st.integers(0, 1000), seed=st.integers(0, 99))
def test_views_of_a_sample_in_one_batch_differ_and_are_those_of_any_subset(count, per_sample, epoch, seed):
    per_sample = min(per_sample, count)
    views = Views(count, per_sample)
    whole = views.shown(np.arange(50), 50, seed=seed, epoch=epoch)
    few = np.array([31, 4, 17])
    assert (views.shown(few, 50, seed=seed, epoch=epoch) == whole[few]).all()
    assert all(len(set(row)) == per_sample for row in whole.tolist())
    assert 0 <= whole.min() <= whole.max() < count


def test_rows_begin_with_different_views_and_other_seeds_with_others():
    first = Views(8).shown(np.arange(800), 800, seed=0, epoch=0)[:, 0]
    other = Views(8).shown(np.arange(800), 800, seed=1, epoch=0)[:, 0]
    assert (np.bincount(first, minlength=8) > 60).all()
    assert 0.05 < (first == other).mean() < 0.2
    assert (PLAIN.shown(np.arange(9), 9, seed=3, epoch=5) == 0).all()


@pytest.mark.parametrize(("count", "per_sample"), [(2, 3), (1, 0), (0, 1)])
def test_more_views_of_a_sample_than_there_are(count, per_sample):
    with pytest.raises(UsageError, match="views") as refused:
        Views(count, per_sample)
    assert "fc extend" in refused.value.hint


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    source = Pictures.of_all_shapes(12)
    return source, taught(tmp_path_factory.mktemp("views") / "cache", source, find_augmentation("none+mix"), views=4)


def test_an_epoch_of_batches_shows_every_row_in_its_views(pictures):
    source, cache = pictures
    data = students(cache, source, views=Views(4, 2))
    assert data.steps_per_epoch(8) == 3
    seen = {row: [] for row in range(12)}
    for step, batch in enumerate(data.shuffled(8, seed=7, start=0, stop=6)):
        rows = batch.rows.numpy()
        assert len(rows) == 8 and (rows[::2] == rows[1::2]).all() and len(set(rows.tolist())) == 4
        assert batch.labels.tolist() == source.labels[rows].tolist()
        views = data.views.shown(rows[::2], 12, seed=7, epoch=step // 3).reshape(-1)
        expected = cache.split().read(rows, view=views)["embedding"]
        assert batch.targets["embedding"].equal(expected) and digests(batch.inputs).equal(expected)
        for row, view in zip(rows.tolist(), views.tolist(), strict=True):
            seen[row].append(view)
    assert all(sorted(views) == [0, 1, 2, 3] for views in seen.values())


def test_the_bank_and_the_rows_in_order_are_of_the_plain_view(pictures):
    source, cache = pictures
    data = students(cache, source, views=Views(4, 2), bank_rows=3)
    plain = cache.split().read(np.arange(12))["embedding"]
    batch = next(data.shuffled(8, seed=0, start=0, stop=1))
    assert len(batch.bank["embedding"]) == 3
    assert all((plain == row).all(1).any() for row in batch.bank["embedding"])
    for part in data.in_order(5):
        assert part.targets["embedding"].equal(plain[part.rows]) and part.mix is None
        assert digests(part.inputs).equal(plain[part.rows])


def test_a_cache_that_does_not_say_what_its_views_are(pictures, monkeypatch):
    source, cache = pictures
    reader = cache.split()
    data = students(cache, source)
    monkeypatch.setattr(reader, "_views", [])
    fields = {"samples": data.samples, "labels": data.labels, "reader": reader, "outputs": ("embedding",)}
    with pytest.raises(CorruptCacheError, match="does not say what they are"):
        type(data)(source, data.input, views=Views(4, 1), **fields)


def test_a_partner_beyond_the_samples_of_a_part_is_refused(pictures):
    source, cache = pictures
    whole = students(cache, source)
    fields = {"rows": whole.rows[:2], "reader": whole.reader, "outputs": ("embedding",), "views": Views(4, 4)}
    data = type(whole)(source, whole.input, samples=whole.samples[:2], labels=whole.labels[:2], **fields)
    with pytest.raises(UsageError, match="mixed with others"):
        list(data.shuffled(8, seed=0, start=0, stop=1))


def log_softmax(row):
    highest = max(row)
    return [value - highest - math.log(sum(math.exp(other - highest) for other in row)) for value in row]


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_cross_entropy_of_mixed_labels(smoothing):
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    own, other = [0, 2, NO_LABEL, 1, 0], [1, NO_LABEL, 0, 2, 0]
    shares = [0.25, 0.6, 0.5, 1.0, 0.125]
    mix = Mix(torch.tensor(other), torch.tensor(shares))
    objective = CrossEntropy(Dimensions(features=4, targets={}), label_smoothing=smoothing)
    batch = Batch(inputs={}, targets={}, labels=torch.tensor(own), rows=torch.arange(5), mix=mix)
    total = 0.0
    for row, mine, others, share in zip(logits.double().tolist(), own, other, shares, strict=True):
        logs = log_softmax(row)

        def loss(label, logs=logs):
            if label == NO_LABEL:
                return 0.0
            return -(1 - smoothing) * logs[label] - smoothing * sum(logs) / 3

        total += 0.0 if mine == NO_LABEL else share * loss(mine) + (1 - share) * loss(others)
    assert float(objective({"labels": logits}, batch)) == pytest.approx(total / 4, rel=1e-6)
