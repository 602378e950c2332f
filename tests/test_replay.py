"""The student is given, byte for byte, what the teacher was given: of any row, view, batch, process or restart."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import featurecache.extract as extraction
from featurecache import loader
from featurecache.augment import find_augmentation
from featurecache.draw import stored_views
from featurecache.errors import BadSampleError, FeatureCacheError, IncompleteError
from featurecache.extract import extract
from featurecache.frames import Frames
from featurecache.loader import finish, load
from featurecache.masking import mask_of
from featurecache.store import layout
from featurecache.types import Reason
from student.views import Views
from tests.digesting import Digesting, begin, digests, draw, planned, shards, students, taught, told
from tests.sample_inputs import Pictures, Words, picture, png, text_input

ROWS, VIEWS = 14, 3
IMAGES = ("none", "flip-crop", "standard", "strong", "diffaugment", "standard+mix", "own")
OWN = """
name = "own"
version = 3
[[operations]]
name = "crop"
scale = [0.3, 0.9]
[[operations]]
name = "rotate"
degrees = 40
fill = 90
[[operations]]
name = "colour"
hue = 0.4
[[operations]]
name = "mix"
p = 0.6
cutmix = 0.8
"""
QUICK = settings(deadline=None, max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="module")
def _small_shards():
    """Shards of 8 rows of digests, so that few rows make several; those of parameters are smaller still."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "_MAX_SHARD_BYTES", 8 * 8 * 4)
        yield


def damaged():
    """Pictures of which every fourth cannot be decoded: bytes that are no image, or half of one."""
    source = Pictures.of_all_shapes(ROWS)
    source.contents[2::8] = [b"no image"] * len(source.contents[2::8])
    source.contents[6::8] = [content[: len(content) // 2] for content in source.contents[6::8]]
    return source


def named(name, folder):
    if name == "mask":
        return mask_of(text_input())
    if name == "own":
        (folder / "own.toml").write_text(OWN)
        name = str(folder / "own.toml")
    return find_augmentation(name)


@pytest.fixture(scope="module", params=[*IMAGES, "mask"])
def case(request, tmp_path_factory):
    """(a source, its augmentation, its cache): images of which some are bad, or texts."""
    folder = tmp_path_factory.mktemp("replay")
    source = Words(ROWS) if request.param == "mask" else damaged()
    augmentation = named(request.param, folder)
    return source, augmentation, taught(folder / "cache", source, augmentation, views=VIEWS, batch_size=16)


@QUICK
@given(
    batch_size=st.integers(1, 30),
    per_sample=st.integers(1, VIEWS),
    seed=st.integers(0, 99),
    start=st.integers(0, 30),
    shuffle=st.sampled_from(["global", "blocks"]),
)
def test_a_student_is_given_what_the_teacher_was(case, batch_size, per_sample, seed, start, shuffle):
    source, _, cache = case
    views = Views(VIEWS, per_sample)
    data = students(cache, source, views=views, check_inputs="all", shuffle=shuffle)
    for batch in data.shuffled(batch_size, seed=seed, start=start, stop=start + 3):
        torch.testing.assert_close(digests(batch.inputs), batch.targets["embedding"], rtol=0, atol=0)


@pytest.mark.parametrize("case", ["standard+mix", "mask"], indirect=True)  # two: processes take long to start
def test_worker_processes_give_the_student_the_same_bytes(case):
    source, _, cache = case
    seen = []
    for workers in (0, 2):
        data = students(cache, source, views=Views(VIEWS, 2), workers=workers)
        batches = data.shuffled(6, seed=1, start=0, stop=6)
        seen.append([(batch.rows, digests(batch.inputs), batch.targets["embedding"]) for batch in batches])
    for (rows, here, target), (rows_there, there, _) in zip(*seen, strict=True):
        assert rows.equal(rows_there) and here.equal(there) and here.equal(target)


def test_every_view_of_a_row_is_another(case):
    _, augmentation, cache = case
    reader = cache.split("train")
    valid = np.flatnonzero(reader.valid())
    shown = told(reader, valid, np.arange(VIEWS)).reshape(len(valid), VIEWS, -1)
    different = [len({tuple(view.tolist()) for view in row}) for row in shown]
    assert set(different) == {1} if augmentation.name == "none" else np.mean(different) > VIEWS - 1


@pytest.mark.parametrize("name", ["standard+mix", "mask"])
def test_workers_batches_and_restarts_change_no_byte_of_a_cache(tmp_path, name):
    source = Words(ROWS) if name == "mask" else damaged()
    augmentation = named(name, tmp_path)
    whole = taught(tmp_path / "whole", source, augmentation, views=VIEWS).objects.root
    assert len(shards(whole, "digesting")) == 4 * 2 * VIEWS  # four arrays, two shards of at most eight rows
    for number, options in enumerate([{"batch_size": 1}, {"batch_size": 7, "workers": 2}]):
        other = taught(tmp_path / str(number), source, augmentation, views=VIEWS, **options).objects.root
        assert shards(whole) == shards(other)
    objects = begin(tmp_path / "stopped", source, augmentation, views=VIEWS)
    for steps in (3, 4, 100):
        run = extract(
            Digesting(source.modality), source, objects, planned(source, augmentation, views=VIEWS), batch_size=6
        )
        for _, _ in zip(range(steps), run, strict=False):
            pass
        run.close()
    assert shards(whole) == shards(objects.root)


@pytest.mark.parametrize("name", ["strong+mix", "mask"])
def test_views_drawn_in_two_goes_are_those_drawn_at_once(tmp_path, name):
    source = Words(ROWS) if name == "mask" else damaged()
    augmentation = named(name, tmp_path)
    once = begin(tmp_path / "once", source, augmentation, views=7)
    twice = begin(tmp_path / "twice", source, augmentation, views=3)
    draw(twice, source, augmentation, views=(3, 7))
    rows, views = np.repeat(np.arange(ROWS), 6), np.tile(np.arange(1, 7), ROWS)
    first, second = (stored_views(objects, "train", stop=7).parameters(rows, views) for objects in (once, twice))
    assert first.tobytes() == second.tobytes() and first.dtype == np.float32
    pending = stored_views(twice, "train")
    assert pending.stop == 7 and [part.part.name for part in pending.parts] == ["views", "views.3"]
    with pytest.raises(IncompleteError, match="not drawn"):
        stored_views(twice, "train", stop=8)


def test_views_are_a_function_of_seed_key_and_view(tmp_path):
    source, augmentation = Pictures.of_all_shapes(9), find_augmentation("standard")
    one, same, other = (
        stored_views(begin(tmp_path / str(at), source, augmentation, views=4, seed=seed), "train")
        for at, seed in enumerate((5, 5, 6))
    )
    rows, views = np.repeat(np.arange(9), 3), np.tile(np.arange(1, 4), 9)
    drawn = [stored.parameters(rows, views) for stored in (one, same, other)]
    assert drawn[0].tobytes() == drawn[1].tobytes()
    assert (drawn[0] != drawn[2]).any(axis=1).all()
    assert len({row.tobytes() for row in drawn[0]}) == 27


def test_two_runs_on_one_part_give_what_one_gives(tmp_path, monkeypatch):
    monkeypatch.setattr(extraction, "_WAIT_SECONDS", 0)
    source, augmentation = damaged(), find_augmentation("flip-crop+mix")
    whole = taught(tmp_path / "whole", source, augmentation, views=VIEWS)
    objects = begin(tmp_path / "both", source, augmentation, views=VIEWS)
    part = planned(source, augmentation, views=VIEWS)
    teachers = [Digesting(), Digesting()]
    runs = [
        extract(teacher, source, objects, part, batch_size=size)
        for teacher, size in zip(teachers, (5, 16), strict=True)
    ]
    for _ in range(500):  # in turn, each claiming what the other may not do
        if not [progress for run in runs if (progress := next(run, None))]:
            break
    assert shards(objects.root) == shards(whole.objects.root)
    assert all(teacher.given for teacher in teachers)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    source = damaged()
    return source, taught(tmp_path_factory.mktemp("mix") / "cache", source, find_augmentation("none+mix"), views=3)


class TestMix:
    """Every sample is mixed, a fourth of the partners is bad, and shards are smaller than the blocks of partners."""

    def test_partners_lie_in_other_shards_too(self, mixed):
        _, cache = mixed
        views = cache.split("train").stored_views
        parameters = views.parameters(np.arange(ROWS), np.ones(ROWS, np.int64))
        partners = np.arange(ROWS) + views.augmentation.partner_offsets(parameters)
        assert (partners // 8 != np.arange(ROWS) // 8).any() and (partners // 8 == np.arange(ROWS) // 8).any()
        assert (partners >= 0).all() and (partners < ROWS).all() and (partners != np.arange(ROWS)).all()

    def test_a_bad_partner_mixes_with_nobody(self, mixed):
        source, cache = mixed
        reader = cache.split("train")
        views, valid = reader.stored_views, reader.valid()
        data = students(cache, source, views=Views(3, 3))
        batch = next(data.shuffled(3 * len(data), seed=0, start=0, stop=1))
        rows, shown = batch.rows.numpy(), data.views.shown(batch.rows.numpy()[::3], ROWS, seed=0, epoch=0).reshape(-1)
        parameters = views.parameters(rows, shown)
        partners = rows + views.augmentation.partner_offsets(parameters)
        is_mixed = (shown > 0) & valid[partners]
        assert 0 < is_mixed.sum() < (shown > 0).sum()
        shares = np.where(is_mixed, views.augmentation.own_share(parameters), 1)
        np.testing.assert_array_equal(batch.mix.share.numpy(), shares.astype(np.float32))
        np.testing.assert_array_equal(batch.mix.labels.numpy()[is_mixed], source.labels[partners[is_mixed]])
        plain = told(reader, rows, np.array([0]))
        same = (batch.targets["embedding"] == plain).all(1).numpy()
        assert same[~is_mixed].all() and not same[is_mixed & (shares < 0.99)].any()

    @pytest.mark.parametrize("level", ["all", "sample"])
    def test_a_partner_that_only_another_decoder_can_read_stops_training(self, mixed, monkeypatch, level):
        source, cache = mixed
        reader = cache.split("train")
        views, valid = reader.stored_views, np.flatnonzero(reader.valid())
        offsets = views.augmentation.partner_offsets(views.parameters(valid, np.ones(len(valid), np.int64)))
        row, partner = next(
            (row, row + offset) for row, offset in zip(valid, offsets, strict=True) if row + offset in valid
        )
        data = students(cache, source, views=Views(3, 3), check_inputs=level).only(np.flatnonzero(valid == row))
        assert len(list(data.shuffled(3, seed=0, start=0, stop=1))) == 1
        _fail_to_decode(monkeypatch, source.keys[partner])
        with pytest.raises(FeatureCacheError, match=source.keys[partner]):
            list(data.shuffled(3, seed=0, start=0, stop=1))


def _fail_to_decode(monkeypatch, key):
    decode = loader.decode

    def failing(sample, modality):
        if sample.key == key:
            raise BadSampleError(Reason.CORRUPT_IMAGE, "another decoder")
        return decode(sample, modality)

    monkeypatch.setattr(loader, "decode", failing)


@pytest.mark.parametrize("name", ["strong", "diffaugment", "own"])
def test_the_plain_view_is_the_same_with_an_augmentation_beside_it(tmp_path, name):
    source, augmentation = Pictures.of_all_shapes(6), named(name, tmp_path)
    rows, network_input = np.arange(6), Digesting().input
    beside = Frames.of(rows, np.tile(augmentation.plain, (6, 1, 1)).reshape(6, 1, -1))
    (changed,) = load(source, network_input, [beside])
    (plain,) = load(source, network_input, [rows])
    images = finish(changed, changed.inputs, augmentation).inputs["images"]
    assert images.equal(plain.inputs["images"]) and images.dtype == torch.uint8


def test_an_image_too_thin_for_the_plain_view_is_bad_in_every_view(tmp_path):
    source = Pictures([png(picture(0, 40, 40)), png(np.zeros((1, 70_000, 3), np.uint8)), png(picture(2, 30, 50))])
    augmentation = find_augmentation("flip-crop+mix")
    teacher = Digesting(size=400)
    cache = taught(tmp_path / "cache", source, augmentation, views=12, teacher=teacher)
    reader = cache.split("train")
    assert [reader.reasons("embedding", view=view)[1] for view in range(12)] == [Reason.IMAGE_TOO_LARGE] * 12
    data = students(cache, source, teacher.input, views=Views(12, 4), check_inputs="all")
    for batch in data.shuffled(4, seed=0, start=0, stop=12):
        assert digests(batch.inputs).equal(batch.targets["embedding"])
