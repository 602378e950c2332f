"""Flips, rotations and other warps, and boxes that are painted over or exchanged."""

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as F
from torch import Tensor
from torchvision.transforms import InterpolationMode

from featurecache.augment import effects, frames, warp
from featurecache.augment.operations.erase import Erase
from featurecache.augment.operations.flip import Flip
from featurecache.augment.operations.rotate import Rotate
from tests.augment.pictures import batch

IMAGES = torch.from_numpy(batch(6, 41))
ANGLES = np.array([-180, -15.5, 0, 7.25, 45, 90], np.float32)


def affine(image: Tensor, *, angle: float = 0, translate: tuple[float, float] = (0, 0), shear: float = 0) -> Tensor:
    moved = [share * image.shape[-1] for share in translate]
    return F.affine(image, angle, moved, 1.0, [shear, 0.0], interpolation=InterpolationMode.BILINEAR)


def check_close(found: Tensor, expected: list[Tensor]) -> None:
    """torchvision finds its places in float32 another way: at an edge 1e-4 of a pixel is a grey level or so."""
    apart = (found.int() - torch.stack(expected).int()).abs()
    assert apart.max() <= 1
    assert (apart > 0).float().mean() < 0.01


def test_a_flip_is_exact() -> None:
    found = IMAGES.clone()
    Flip().change(found, np.array([[1], [0], [1], [0], [0], [1]], np.float32))
    for number, image in enumerate(IMAGES):
        assert torch.equal(found[number], F.horizontal_flip(image) if number in (0, 2, 5) else image)


def test_a_rotation_is_torchvisions() -> None:
    found = IMAGES.clone()
    Rotate(degrees=180.0).change(found, ANGLES[:, None])
    pairs = zip(IMAGES, ANGLES, strict=True)
    check_close(found, [F.rotate(image, float(angle), InterpolationMode.BILINEAR) for image, angle in pairs])


def test_quarter_turns_are_exact() -> None:
    found = warp.warped(IMAGES, warp.rotation(np.full(6, 90.0)), fill=0)
    assert torch.equal(found, IMAGES.rot90(1, (2, 3)))


@pytest.mark.parametrize("strength", [-1.0, -0.4, 0.3, 1.0])
def test_shears_and_shifts_are_torchvisions(strength: float) -> None:
    strengths = np.full(6, strength, np.float32)
    lean = float(np.degrees(np.arctan(0.3 * strength)))
    moved = 150 / 331 * strength
    check_close(effects.shift_x(IMAGES, strengths), [affine(image, translate=(moved, 0)) for image in IMAGES])
    check_close(effects.shift_y(IMAGES, strengths), [affine(image, translate=(0, moved)) for image in IMAGES])
    check_close(effects.rotate(IMAGES, strengths), [affine(image, angle=-30 * strength) for image in IMAGES])
    check_close(effects.shear_x(IMAGES, strengths), [affine(image, shear=-lean) for image in IMAGES])
    turned = effects.shear_y(IMAGES.transpose(2, 3), strengths).transpose(2, 3)
    check_close(turned, list(effects.shear_x(IMAGES, strengths)))


def test_scaling_by_two_doubles_the_middle() -> None:
    image = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    image[:, :, 3:5, 3:5] = 200
    found = warp.warped(image, warp.scaling(np.array([2.0]), np.array([1.0])), fill=0)[0, 0]
    assert torch.equal(found[3], found[4])
    assert found[3].tolist() == [0, 50, 150, 200, 200, 150, 50, 0]
    assert found[2].tolist() == [0] * 8


def test_what_comes_into_view_is_the_fill() -> None:
    image = torch.full((1, 3, 10, 10), 30, dtype=torch.uint8)
    found = warp.warped(image, warp.shift(np.array([0.2]), np.array([0.0])), fill=116)[0, 0]
    assert (found[:, :2] == 116).all() and (found[:, 2:] == 30).all()


@pytest.mark.parametrize("number", [np.inf, -np.inf, np.nan, 3e38, -1e9])
def test_no_number_leads_out_of_the_frame(number: float) -> None:
    sources = np.full((1, 2, 3), number)
    assert warp.warped(IMAGES[:1], sources, fill=0).shape == (1, 3, 41, 41)


@pytest.mark.parametrize("side", [10, 20, 160])
def test_an_erased_box_is_where_it_says(side: int) -> None:
    images = torch.full((2, 3, side, side), 200, dtype=torch.uint8)
    Erase(fill=9).change(images, np.array([[0.2, 0.5, 0.4, 0.3], [0, 0, 0, 0]], np.float32))
    expected = np.full((side, side), 200)
    expected[side // 2 : side * 8 // 10, side * 2 // 10 : side * 6 // 10] = 9
    assert np.array_equal(images[0].numpy(), np.stack([expected] * 3))
    assert (images[1] == 200).all()


def test_mixing_is_a_weighted_mean_or_a_box() -> None:
    own, other = IMAGES[:2], IMAGES[2:4]
    boxes = np.array([[0, 0, 0, 0], [0.5, 0, 0.5, 1]], np.float32)
    found = frames.mixed(own, other, np.array([0.25, 0.5], np.float32), boxes)
    exact = 0.25 * own[0].double() + 0.75 * other[0].double()
    assert torch.equal(found[0], exact.round().to(torch.uint8))
    assert torch.equal(found[1, :, :, :20], own[1, :, :, :20])  # 20.5 pixels of 41, rounded to even
    assert torch.equal(found[1, :, :, 20:], other[1, :, :, 20:])


def test_changes_leave_other_frames_alone() -> None:
    found = torch.cat([IMAGES] * 30)
    which = np.arange(180) % 7 == 3
    frames.change(found, which, frames.flipped)
    expected = torch.cat([IMAGES] * 30)
    assert torch.equal(found[which], expected[which].flip(-1)) and torch.equal(found[~which], expected[~which])
