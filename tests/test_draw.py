"""The part "views": drawn once, never again, and only as the first ones were."""

import numpy as np
import pytest

from featurecache.augment import find_augmentation
from featurecache.draw import draw_views, plan_views, stored_views
from featurecache.errors import IdentityError, IncompleteError, UsageError
from featurecache.inputs import TextInput
from featurecache.masking import mask_of
from featurecache.store.objects import LocalObjects
from featurecache.store.verify import Finding, verify
from featurecache.teachers.random_projection import byte_tokenizer_json
from tests.digesting import begin, draw, shards
from tests.sample_inputs import Pictures, Words, text_input


@pytest.fixture
def source():
    return Pictures.of_all_shapes(9)


def test_an_interrupted_draw_goes_on_and_draws_nothing_twice(tmp_path, source):
    augmentation = find_augmentation("strong+mix")
    whole = begin(tmp_path / "whole", source, augmentation, views=5)
    objects = begin(tmp_path / "parts", source, None, views=1)
    part = plan_views(source, "train", augmentation, seed=3, views=(1, 5))
    run = draw_views(source, objects, part, augmentation)
    assert [next(run).view for _ in range(2)] == [1, 2]
    run.close()
    with pytest.raises(IncompleteError):
        stored_views(objects, "train").parameters(np.array([0]), np.array([3]))
    assert [shard.view for shard in draw_views(source, objects, part, augmentation)] == [3, 4]
    assert not list(draw_views(source, objects, part, augmentation))
    assert shards(objects.root) == shards(whole.root)
    assert not [found for found in verify(LocalObjects(objects.root)) if isinstance(found, Finding)]


def test_images_that_cannot_be_read_have_parameters_too(tmp_path, source):
    source.contents[4] = b"no image"
    augmentation = find_augmentation("standard")
    stored = stored_views(begin(tmp_path / "cache", source, augmentation, views=3), "train")
    found = stored.parameters(np.arange(9).repeat(2), np.tile([1, 2], 9))
    assert np.isfinite(found).all() and stored.augmentation.accepts(found)


def test_other_views_are_refused(tmp_path, source):
    augmentation = find_augmentation("standard")
    objects = begin(tmp_path / "cache", source, augmentation, views=3, seed=3)
    for other, seed in ((find_augmentation("strong"), 3), (augmentation, 4)):
        with pytest.raises(IdentityError, match="made from something else"):
            draw(objects, source, other, views=(1, 3), seed=seed)


def test_what_a_split_without_random_views_has(tmp_path, source):
    objects = begin(tmp_path / "cache", source, None, views=1)
    assert stored_views(objects, "train") is None
    with pytest.raises(IncompleteError, match="not drawn yet"):
        stored_views(objects, "train", stop=2)


def test_an_augmentation_of_the_other_kind_of_samples(source):
    with pytest.raises(UsageError, match="changes texts, and the data are images"):
        plan_views(source, "train", mask_of(text_input()), views=(1, 3))
    with pytest.raises(UsageError, match="changes images, and the data are texts"):
        plan_views(Words(3), "train", find_augmentation("standard"), views=(1, 3))


def test_a_mask_knows_its_tokenizer():
    mask = mask_of(text_input(max_length=20))
    tokenizer = text_input().tokenizer
    assert mask.mask_id == tokenizer.token_to_id("[MASK]") and mask.max_length == 20
    assert mask.vocabulary == tokenizer.get_vocab_size()
    names = ("[PAD]", "[CLS]", "[SEP]", "[MASK]")
    assert list(mask.special_ids) == sorted(map(tokenizer.token_to_id, names))
    with pytest.raises(UsageError, match="no mask token"):
        mask_of(TextInput(byte_tokenizer_json()))


def test_a_shorter_student_sees_the_same_mask_and_its_own_end():
    long, short = text_input(max_length=32), text_input(max_length=10)
    text = "abcdefghijklmnopqrstuvwxyz"
    ids = long.read(text)
    mask_id = long.tokenizer.token_to_id("[MASK]")
    every = np.array([[position, mask_id] for position in range(1, len(ids) - 1)], np.float32).reshape(-1)
    end = long.tokenizer.token_to_id("[SEP]")
    for seen in (short.read(text), ids):  # from the text itself, and from what a longer teacher's cache holds of it
        assert short.show(seen, every) == [ids[0], *[mask_id] * 8, end]
        assert short.show(seen, np.full(8, -1, np.float32)) == [*ids[:9], end]
    assert long.show(ids, every) == [ids[0], *[mask_id] * (len(ids) - 2), end]
