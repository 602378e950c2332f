"""What is drawn: as torchvision draws it, in the statistics; and what it never is."""

from itertools import pairwise

import numpy as np
import pytest
from torchvision.transforms.v2 import RandomErasing, RandomResizedCrop
from torchvision.transforms.v2.functional import to_image

from featurecache.augment import ImageAugmentation, find_augmentation
from featurecache.augment.operations.choice import Choice
from featurecache.augment.operations.crop import Crop
from featurecache.augment.operations.diffaugment import DiffAugment
from featurecache.augment.operations.erase import Erase
from featurecache.augment.operations.mix import Mix
from tests.augment.pictures import noise

COUNT = 3000
KEYS = [f"sample {number}" for number in range(COUNT)]


def draw(*operations: object, size: tuple[int, int] = (100, 100), count: int = COUNT, view: int = 1) -> np.ndarray:
    augmentation = ImageAugmentation("test", 1, operations)  # type: ignore[arg-type]
    sizes = np.tile(np.array(size, np.int32), (count, 1))
    found = augmentation.draw(KEYS[:count], sizes, view=view, seed=0, first_row=0, rows=count)
    assert found.dtype == np.float32 and augmentation.accepts(found)
    return found


def check_same_distribution(ours: np.ndarray, theirs: np.ndarray) -> None:
    """Kolmogorov and Smirnov for two samples, at about 0.1 %."""
    everything = np.sort(np.concatenate([ours, theirs]))
    apart = np.searchsorted(np.sort(ours), everything, side="right") / ours.size
    apart -= np.searchsorted(np.sort(theirs), everything, side="right") / theirs.size
    assert np.abs(apart).max() < 1.95 * np.sqrt((ours.size + theirs.size) / (ours.size * theirs.size))


@pytest.mark.parametrize("size", [(224, 224), (150, 600), (640, 200), (37, 41)])
@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.5, 0.6)])
def test_crops_are_torchvisions(size: tuple[int, int], scale: tuple[float, float]) -> None:
    import torch

    torch.manual_seed(0)
    crop = RandomResizedCrop(8, scale=scale)
    image = to_image(np.zeros((*size, 3), np.uint8))
    names = ("left", "top", "width", "height")
    params = [crop.make_params([image]) for _ in range(COUNT)]
    theirs = np.array([[found[name] for name in names] for found in params], float)
    ours = draw(Crop(scale=scale), size=size)[:, :4] * np.array([size[1], size[0]] * 2)
    assert np.abs(ours - np.rint(ours)).max() < 1e-3  # whole pixels
    ours = np.rint(ours)
    for column in range(4):
        check_same_distribution(ours[:, column], theirs[:, column])
    check_same_distribution(ours[:, 2] * ours[:, 3], theirs[:, 2] * theirs[:, 3])
    check_same_distribution(ours[:, 2] / ours[:, 3], theirs[:, 2] / theirs[:, 3])


@pytest.mark.parametrize(("size", "expected"), [((10, 100), (43, 0, 13, 10)), ((100, 10), (0, 43, 10, 13))])
def test_what_fits_nowhere_is_the_middle(size: tuple[int, int], expected: tuple[int, ...]) -> None:
    found = draw(Crop(scale=(1.0, 1.0)), size=size, count=5) * np.array([size[1], size[0]] * 2)
    assert np.allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("size", [(0, 0), (1, 1), (1, 70000), (70000, 3)])
def test_any_size_has_a_box(size: tuple[int, int]) -> None:
    boxes = draw(Crop(), size=size, count=200)
    assert np.isfinite(boxes).all() and (boxes[:, 2:4] > 0).all()


def test_erased_boxes_are_torchvisions() -> None:
    import torch

    torch.manual_seed(0)
    erase = RandomErasing(p=1.0, scale=(0.02, 1 / 3))
    image = to_image(noise(400, 400))
    params = [erase.make_params([image]) for _ in range(COUNT)]
    names = ("j", "i", "w", "h")
    theirs = np.array([[found[name] for name in names] for found in params if found["v"] is not None]) / 400
    ours = draw(Erase(p=1.0))[:, 4:]
    assert (ours[:, 2] > 0).mean() > 0.99
    for column in range(4):
        check_same_distribution(ours[:, column], theirs[:, column])


def test_colours_are_evenly_in_their_range() -> None:
    found = np.sort(draw(*find_augmentation("standard").operations)[:, 5:10], axis=0)
    ranges = [(0.6, 1.4), (0.6, 1.4), (0.6, 1.4), (-0.1, 0.1)]
    for column, (low, high) in enumerate(ranges):
        even = low + (high - low) * (np.arange(COUNT) + 0.5) / COUNT
        assert np.abs(found[:, column] - even).max() < 1.95 / np.sqrt(COUNT) * (high - low)
    orders, times = np.unique(found[:, 4], return_counts=True)
    assert orders.tolist() == list(range(24))
    assert np.abs(times - COUNT / 24).max() < 4 * np.sqrt(COUNT / 24)


def test_flips_and_erasures_are_as_likely_as_they_say() -> None:
    strong = find_augmentation("strong")
    found = dict(zip(strong.parameters, draw(*strong.operations).T, strict=True))
    for name, share in {"flip": 0.5, "rotate": 0.5, "erase.width": 0.25}.items():
        assert abs((found[name] != 0).mean() - share) < 4 * np.sqrt(share * (1 - share) / COUNT)


def test_a_choice_is_among_all_effects() -> None:
    found = draw(Choice(count=2, magnitude=0.3, p=0.8))[:, 4:]
    for effect, strength in ((found[:, 0], found[:, 1]), (found[:, 2], found[:, 3])):
        numbers, times = np.unique(effect, return_counts=True)
        assert numbers.tolist() == list(range(-1, 13))
        assert np.abs(times[1:] - 0.8 * COUNT / 13).max() < 4 * np.sqrt(COUNT / 13)
        assert (strength[effect == -1] == 0).all()
        assert np.array_equal(np.unique(strength[effect >= 0]), np.array([-0.3, 0.3], np.float32))
        assert abs((strength > 0).sum() - 0.4 * COUNT) < 4 * np.sqrt(COUNT / 4)


def test_diffaugment_draws_one_group() -> None:
    operation = DiffAugment(flip=1.0)
    found = draw(operation)[:, 4:]
    plain = np.array([column.plain for column in operation.columns], np.float32)
    groups = [slice(0, 1), slice(1, 4), slice(4, 6), slice(6, 7), slice(7, 9), slice(9, 13)]
    changed = np.stack([(found != plain)[:, group].any(1) for group in groups], axis=1)
    assert (changed.sum(axis=1) == 1).all()
    assert np.abs(changed.sum(axis=0) - COUNT / 6).max() < 4 * np.sqrt(COUNT / 6)
    ranges = {1: (-0.1125, 0.1125), 2: (0, 2), 3: (0.5, 1.5), 4: (-0.125, 0.125), 6: (-15, 15), 7: (1 / 1.2, 1.2)}
    for column, (low, high) in ranges.items():
        own = found[found[:, column] != plain[column], column]
        assert low <= own.min() < low + 0.05 * (high - low) and high - 0.05 * (high - low) < own.max() <= high
    cut = found[changed[:, 5]][:, 9:]
    assert (cut[:, 2:] <= 0.5).all() and (cut[:, 2:] >= 0.25 - 1e-6).all()  # cut at the edges by half at most


@pytest.mark.parametrize(("first_row", "count", "rows"), [(0, 1024, 3000), (1024, 1024, 3000), (2048, 952, 3000)])
def test_partners_are_others_of_the_block(first_row: int, count: int, rows: int) -> None:
    mix = find_augmentation("none+mix")
    sizes = np.zeros((count, 2), np.int32)
    found = mix.draw(KEYS[:count], sizes, view=1, seed=0, first_row=first_row, rows=rows)
    offsets = mix.partner_offsets(found)
    partners = first_row + np.arange(count) + offsets
    assert offsets.dtype == np.int64 and (offsets != 0).all()
    assert partners.min() >= first_row and partners.max() < min(first_row + 1024, rows)
    places = np.sort(partners - first_row) / count
    assert np.abs(places - (np.arange(count) + 0.5) / count).max() < 1.95 / np.sqrt(count)


def test_a_partner_stays_for_eight_views() -> None:
    mix = find_augmentation("none+mix")
    sizes = np.zeros((500, 2), np.int32)
    place = {"seed": 0, "first_row": 0, "rows": 500}
    views = [mix.draw(KEYS[:500], sizes, view=view, **place) for view in range(1, 20)]
    offsets = [mix.partner_offsets(view) for view in views]
    for view, (before, after) in enumerate(pairwise(offsets), start=2):
        assert np.array_equal(before, after) == (view not in (8, 16))
    shares = [mix.own_share(view) for view in views]
    assert not any(np.array_equal(before, after) for before, after in pairwise(shares))


def test_a_partner_does_not_depend_on_what_is_drawn_with_it() -> None:
    mix = find_augmentation("standard+mix")
    sizes = np.full((40, 2), 50, np.int32)
    everything = mix.draw(KEYS[:40], sizes, view=3, seed=1, first_row=1000, rows=1100)
    for row in range(40):
        alone = mix.draw([KEYS[row]], sizes[:1], view=3, seed=1, first_row=1000 + row, rows=1100)
        assert np.array_equal(alone[0], everything[row])


@pytest.mark.parametrize(("first_row", "rows"), [(0, 1), (1024, 1025)])
def test_a_row_alone_in_its_block_is_not_mixed(first_row: int, rows: int) -> None:
    mix = find_augmentation("none+mix")
    found = mix.draw(["key"], np.zeros((1, 2), np.int32), view=1, seed=0, first_row=first_row, rows=rows)
    assert np.array_equal(found[:, 4:], mix.plain[None, 4:])
    assert mix.partner_offsets(found).tolist() == [0] and mix.own_share(found).tolist() == [1]


def test_shares_are_even_for_mixup_and_the_boxs_for_cutmix() -> None:
    found = draw(Mix())[:, 4:]
    share, box = found[:, 1], found[:, 2:]
    is_cut = box[:, 2] > 0
    assert abs(is_cut.mean() - 0.5) < 4 * 0.5 / np.sqrt(COUNT)
    assert np.allclose(share[is_cut], 1 - box[is_cut, 2] * box[is_cut, 3], atol=1e-6)
    even = np.sort(share[~is_cut])
    assert np.abs(even - (np.arange(even.size) + 0.5) / even.size).max() < 1.95 / np.sqrt(even.size)
    # a square of which nothing is cut off would leave shares even; the edges make what stays larger
    assert share[is_cut].mean() > 0.55
    assert (box[:, :2] + box[:, 2:]).max() <= 1 + 1e-6


def test_a_mix_may_be_rare() -> None:
    found = draw(Mix(p=0.1))[:, 4:]
    assert abs((found[:, 0] != 0).mean() - 0.1) < 4 * 0.3 / np.sqrt(COUNT)
    assert (found[found[:, 0] == 0, 1] == 1).all()
