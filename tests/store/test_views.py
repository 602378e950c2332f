"""Parameters as they were drawn, over the parts that hold them; what a stranger's cache may not say."""

import dataclasses

import numpy as np
import pytest

from featurecache.augment import find_augmentation
from featurecache.draw import plan_views
from featurecache.errors import CorruptCacheError, UsageError
from featurecache.store.part_reader import PartReader
from featurecache.store.views import StoredViews
from featurecache.store.writer import CacheWriter
from tests.digesting import begin, draw, planned
from tests.sample_inputs import Pictures

MIX = find_augmentation("flip-crop+mix")
ROWS = 10


@pytest.fixture(scope="module")
def source():
    return Pictures.of_all_shapes(ROWS)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory, source):
    """Views 1 and 2, and 3 to 5, of one split: the two parts."""
    objects = begin(tmp_path_factory.mktemp("views") / "cache", source, MIX, views=3)
    draw(objects, source, MIX, views=(3, 6))
    return [PartReader(objects, planned_views(source, views)) for views in ((1, 3), (3, 6))]


def planned_views(source, views):
    return plan_views(source, "train", MIX, seed=3, views=views)


def forged(tmp_path, source, change, views=(1, 3)):
    """A part of views whose numbers, float32 (rows, parameters), were changed."""
    objects = begin(tmp_path / "forged", source, None, views=1)
    part = planned_views(source, views)
    writer = CacheWriter(objects, part)
    for shard in writer.pending():
        sizes = np.full((shard.rows, 2), 50, np.int32)
        rows = MIX.draw(source.keys, sizes, view=shard.view, seed=3, first_row=0, rows=ROWS)
        change(rows)
        writer.write(shard, {"view": rows})
    return StoredViews([PartReader(objects, part)])


def test_parts_are_one_row_of_views(drawn):
    first, second = drawn
    for order in ((first, second), (second, first)):
        views = StoredViews(order)
        assert views.stop == 6 and views.rows == ROWS and views.augmentation == MIX and views.proof == MIX.proof()
    with pytest.raises(CorruptCacheError, match="view 1 is missing"):
        StoredViews([second])
    with pytest.raises(CorruptCacheError, match="begins with view 1"):
        StoredViews([first, first])


def test_the_plain_view_has_plain_parameters(drawn):
    views = StoredViews(drawn)
    found = views.parameters(np.array([2, 2, 5]), np.array([0, 4, 0]))
    assert found[0].tobytes() == found[2].tobytes() == MIX.plain.tobytes()
    assert found[1].tobytes() == drawn[1].whole("view", view=4)[2].tobytes()


@pytest.mark.parametrize("view", [-1, 6, 100])
def test_a_view_that_there_is_not(drawn, view):
    with pytest.raises(UsageError, match="there are views 0 to 5"):
        StoredViews(drawn).parameters(np.array([0, 1]), np.array([1, view]))


def test_frames_of_a_mix(drawn):
    views = StoredViews(drawn)
    rows, shown = np.array([7, 1]), np.array([[0, 1], [3, 3]])
    frames = views.frames(rows, shown)
    own = views.parameters(np.array([7, 7, 1, 1]), shown.reshape(-1))
    assert frames.parameters[:4].tobytes() == own.tobytes()
    offsets = MIX.partner_offsets(own)
    assert offsets[0] == 0 and (offsets[1:] != 0).all() and frames.partners[0] == -1
    partners = np.array([7, 1, 1]) + offsets[1:]
    at = frames.partners[1:]
    assert frames.samples[frames.shows[at]].tolist() == partners.tolist()
    assert frames.parameters[at].tobytes() == views.parameters(partners, np.array([1, 3, 3])).tobytes()


def test_frames_name_the_samples_of_another_order(drawn):
    views, order = StoredViews(drawn), np.random.default_rng(0).permutation(ROWS)
    rows, shown = np.array([3, 8, 0]), np.array([[2], [1], [5]])
    own, renamed = views.frames(rows, shown), views.frames(rows, shown, order)
    np.testing.assert_array_equal(order[own.samples[own.shows[: len(own)]]], renamed.samples[renamed.shows[:3]])
    at = own.partners
    np.testing.assert_array_equal(order[own.samples[own.shows[at]]], renamed.samples[renamed.shows[renamed.partners]])


def test_partners_that_the_data_do_not_have(drawn):
    views, first = StoredViews(drawn), np.array([0])
    partner = int(MIX.partner_offsets(views.parameters(first, np.array([1])))[0])
    samples = np.where(np.arange(ROWS) == partner, -1, np.arange(ROWS))
    with pytest.raises(UsageError, match="mixed with others") as refused:
        views.frames(first, np.array([[1]]), samples)
    assert "all the data" in refused.value.hint
    assert len(views.frames(first, np.array([[0]]), samples)) == 1
    assert len(views.frames(first, np.array([[1]]), samples, bad=samples < 0)) == 1


def test_rows_that_the_teacher_could_not_decode_are_mixed_with_nobody(drawn):
    views, every = StoredViews(drawn), np.arange(ROWS)
    bad = every % 2 == 0
    frames = views.frames(every, np.full((ROWS, 1), 1), bad=bad)
    partners = every + MIX.partner_offsets(views.parameters(every, np.ones(ROWS, np.int64)))
    assert ((frames.partners < 0) == bad[partners]).all() and (frames.partners < 0).any()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("box.left", -0.5),
        ("box.left", 0.99999),
        ("box.width", -0.1),
        ("box.width", np.nan),
        ("box.top", np.inf),
        ("flip", 3.0),
        ("mix.offset", 0.5),
        ("mix.offset", np.nan),
        ("mix.offset", 1e9),
        ("mix.share", -1.0),
    ],
)
def test_numbers_that_no_augmentation_draws(tmp_path, source, name, value):
    def change(rows):
        rows[4, MIX.parameters.index(name)] = value

    views = forged(tmp_path, source, change)
    views.parameters(np.array([3]), np.array([1]))
    with pytest.raises(CorruptCacheError, match="never draws"):
        views.frames(np.array([4]), np.array([[1]]))


@pytest.mark.parametrize("offset", [ROWS, -ROWS])
def test_partners_outside_of_the_split(tmp_path, source, offset):
    def change(rows):
        rows[:, MIX.parameters.index("mix.offset")] = offset

    with pytest.raises(CorruptCacheError, match="that there are not"):
        forged(tmp_path, source, change).frames(np.array([4]), np.array([[1]]))


@pytest.mark.parametrize("json", [{}, [], None, "standard", {**MIX.to_json(), "operations": [{"name": "explode"}]}])
def test_an_augmentation_that_is_none(drawn, json):
    first = drawn[0]
    facts = {**first.part.facts, "augmentation": json}
    changed = PartReader(first._objects, dataclasses.replace(first.part, facts=facts))
    with pytest.raises(CorruptCacheError):
        StoredViews([changed])


def test_parts_that_are_no_views(drawn, source):
    teacher = planned(source, MIX, views=3)
    with pytest.raises(CorruptCacheError, match="holds no views"):
        StoredViews([PartReader(drawn[0]._objects, teacher)])
