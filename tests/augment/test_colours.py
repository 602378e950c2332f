"""Changes of colour against torchvision's, for the same factors."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as F
from torch import Tensor

from featurecache.augment import colours, effects
from featurecache.augment.operations.colour import Colour
from tests.augment.pictures import batch

FACTORS = np.array([0.0, 0.3, 0.6, 0.95, 1.0, 1.2, 1.4, 1.9], np.float32)
TURNS = np.array([-0.5, -0.1, -0.03, 0.0, 0.02, 0.1, 0.25, 0.5], np.float32)
IMAGES = torch.from_numpy(batch(8, 33))


def farthest(found: Tensor, expected: list[Tensor]) -> int:
    assert found.dtype == torch.uint8
    return int((found.int() - torch.stack(expected).int()).abs().max())


@pytest.mark.parametrize(
    ("ours", "theirs", "values"),
    [
        (colours.brightness, F.adjust_brightness, FACTORS),
        (colours.contrast, F.adjust_contrast, FACTORS),
        (colours.saturation, F.adjust_saturation, FACTORS),
        (colours.hue, F.adjust_hue, TURNS),
    ],
)
def test_they_are_torchvisions(ours: Callable[..., Tensor], theirs: Callable[..., Tensor], values: np.ndarray) -> None:
    expected = [theirs(image, float(value)) for image, value in zip(IMAGES, values, strict=True)]
    assert farthest(ours(IMAGES, values), expected) <= 1


def test_every_colour_has_torchvisions_hue() -> None:
    levels = torch.tensor([0, 1, 85, 127, 128, 200, 254, 255], dtype=torch.uint8)
    cube = torch.cartesian_prod(levels, levels, levels).T.reshape(1, 3, 16, 32)
    for turn in TURNS:
        assert farthest(colours.hue(cube, np.array([turn])), [F.adjust_hue(cube[0], float(turn))]) <= 1


def test_the_order_is_the_one_that_is_drawn() -> None:
    # (contrast, saturation, brightness, hue) is the ninth of the permutations of (0, 1, 2, 3), counted from 0
    parameters = np.array([[0.7, 1.3, 0.5, 0.08, 8]], np.float32)
    image = IMAGES[1:2].clone()
    Colour().change(image, parameters)
    expected = F.adjust_contrast(IMAGES[1], 1.3)
    expected = F.adjust_brightness(F.adjust_saturation(expected, 0.5), 0.7)
    expected = F.adjust_hue(expected, 0.08)
    assert (image[0].int() - expected.int()).abs().max() <= 2  # each step within one, and later ones shrink it
    other = IMAGES[1:2].clone()
    Colour().change(other, np.array([[0.7, 1.3, 0.5, 0.08, 0]], np.float32))
    assert (image.int() - other.int()).abs().max() > 5


def test_diffaugments_colours() -> None:
    values = np.array([-0.1, 0.0, 0.1, 0.02, 0.5, -0.5, 1.0, -1.0], np.float32)
    moved = (IMAGES.numpy() + np.rint(255 * values)[:, None, None, None]).clip(0, 255)
    assert np.array_equal(colours.shifted(IMAGES, values).numpy(), moved.astype(np.uint8))
    images = IMAGES.numpy().astype(float)
    for function, axes in ((colours.vividness, (1,)), (colours.spread, (1, 2, 3))):
        mean = images.mean(axes, keepdims=True)
        expected = ((images - mean) * FACTORS[:, None, None, None] + mean).clip(0, 255)
        assert np.abs(function(IMAGES, FACTORS).numpy() - expected).max() <= 1.001  # cut off, not rounded


@pytest.mark.parametrize("strength", [-1.0, -0.3, 0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (effects.sharpness, lambda image, strength: F.adjust_sharpness(image, 1 + 0.9 * strength)),
        (effects.posterise, lambda image, strength: F.posterize(image, 8 - round(4 * abs(strength)))),
        (effects.solarise, lambda image, strength: F.solarize(image, 255 * (1 - abs(strength)))),
        (effects.autocontrast, lambda image, strength: F.autocontrast(image)),
        (effects.equalise, lambda image, strength: F.equalize(image)),
        (effects.brightness, lambda image, strength: F.adjust_brightness(image, 1 + 0.9 * strength)),
        (effects.contrast, lambda image, strength: F.adjust_contrast(image, 1 + 0.9 * strength)),
        (effects.saturation, lambda image, strength: F.adjust_saturation(image, 1 + 0.9 * strength)),
    ],
)
def test_effects_are_torchvisions(ours: Callable[..., Tensor], theirs: Callable[..., Tensor], strength: float) -> None:
    images = IMAGES.clone()
    images[2] = images[2] // 4 + 60  # a dull one, which has something to stretch
    images[4] = 77  # one of a single value
    found = ours(images, np.full(8, strength, np.float32))
    assert farthest(found, [theirs(image, strength) for image in images]) <= 1


@pytest.mark.parametrize("side", [1, 2])
def test_the_smallest_frames_have_no_inside_to_sharpen(side: int) -> None:
    images = IMAGES[:, :, :side, :side].contiguous()
    assert torch.equal(effects.sharpness(images, np.full(8, 0.9, np.float32)), images)
