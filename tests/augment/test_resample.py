"""Cutting out and resizing: as torchvision does on Pillow's images, and for whole batches as Pillow does."""

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import InterpolationMode

from featurecache.augment.resample import by_products, resample, resample_batch
from tests.augment.pictures import noise, scene

MODES = ["bilinear", "bicubic", "nearest"]
boxes = st.tuples(*[st.floats(0, 1, width=32)] * 4).map(lambda box: np.array(box, np.float32))


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 50), st.sampled_from(MODES), st.data())
def test_whole_pixels_are_torchvisions(height: int, width: int, size: int, mode: str, data: st.DataObject) -> None:
    left, top = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    wide, high = data.draw(st.integers(1, width - left)), data.draw(st.integers(1, height - top))
    frame = noise(height, width)
    box = (np.array([left, top, wide, high]) / [width, height, width, height]).astype(np.float32)
    found = resample(frame, box, size, mode)
    image, by = Image.fromarray(frame), InterpolationMode(mode)
    across = F.resized_crop(image, top, left, high, wide, [high, size], interpolation=by)
    assert np.array_equal(found, np.asarray(F.resize(across, [size, size], interpolation=by)).transpose(2, 0, 1))
    at_once = F.resized_crop(image, top, left, high, wide, [size, size], interpolation=by)
    if high <= size or wide >= high:  # else Pillow 13 may go down first and round in between elsewhere
        assert np.array_equal(found, np.asarray(at_once).transpose(2, 0, 1))


@pytest.mark.parametrize(("height", "width"), [(4001, 6007), (9, 16001)])
def test_whole_pixels_of_large_images_stay_whole(height: int, width: int) -> None:
    frame = np.zeros((height, width, 3), np.uint8)
    frame[3 : height - 2, 5 : width - 4] = 255
    box = (np.array([5, 3, width - 9, height - 5]) / [width, height, width, height]).astype(np.float32)
    assert resample(frame, box, 16, "bilinear").min() == 255


def test_parts_of_pixels_count_as_parts() -> None:
    ramp = np.repeat(np.arange(0, 160, 10, dtype=np.uint8)[None, :, None], 3, axis=2)  # 10 more with each pixel
    found = resample(ramp, np.array([2.5 / 16, 0, 8 / 16, 1]), 4, "bilinear")
    # middles at 3.5, 5.5, 7.5 and 9.5 pixels, where the ramp is ten times half a pixel less
    assert found[0, 0].tolist() == [30, 50, 70, 90]


@settings(max_examples=60, deadline=None)
@given(boxes, st.integers(1, 40), st.integers(1, 40), st.integers(1, 60), st.sampled_from(MODES))
def test_a_batch_is_what_pillow_makes(box: np.ndarray, height: int, width: int, size: int, mode: str) -> None:
    frame = noise(height, width, seed=1)
    found = by_products(torch.from_numpy(frame)[None], box[None], np.array([0]), size, mode)[0].numpy()
    assert np.abs(found.astype(int) - resample(frame, box, size, mode)).max() <= 1


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [24, 96])
def test_a_batch_shows_the_frames_that_it_is_asked_for(mode: str, size: int) -> None:
    frames = np.stack([scene(64, 64, seed=seed) for seed in range(3)])
    generator = np.random.default_rng(0)
    start = generator.random((10, 2)) * 0.6
    rows = np.concatenate([start, 0.1 + generator.random((10, 2)) * (0.9 - start)], axis=1).astype(np.float32)
    shows = generator.integers(0, 3, 10)
    found = by_products(torch.from_numpy(frames), rows, shows, size, mode).numpy()
    expected = [resample(frames[frame], box, size, mode) for frame, box in zip(shows, rows, strict=True)]
    assert np.array_equal(found, np.stack(expected))  # to the last bit, which is more than was promised


def test_a_batch_does_not_depend_on_its_company() -> None:
    frames = torch.from_numpy(np.stack([noise(50, 40, seed=seed) for seed in range(7)]))
    rows = np.tile(np.array([0.1, 0.2, 0.7, 0.5], np.float32), (7, 1))
    everything = by_products(frames, rows, np.arange(7), 31, "bicubic")
    for number in range(7):
        alone = by_products(frames[number : number + 1], rows[:1], np.array([0]), 31, "bicubic")
        assert torch.equal(everything[number], alone[0])


@settings(max_examples=100, deadline=None)
@given(st.tuples(*[st.floats(width=32)] * 4), st.integers(1, 20), st.integers(1, 20), st.sampled_from(MODES))
def test_no_box_is_too_strange(box: tuple[float, ...], height: int, width: int, mode: str) -> None:
    frame = noise(height, width)
    found = resample(frame, np.array(box, np.float32), 5, mode)
    assert found.shape == (3, 5, 5) and found.dtype == np.uint8
    rows = np.array([box], np.float32)
    assert by_products(torch.from_numpy(frame)[None], rows, np.array([0]), 5, mode).shape == (1, 3, 5, 5)


def test_an_empty_box_is_one_pixel() -> None:
    frame = noise(6, 6)
    found = resample(frame, np.array([0.5, 1.0, 0.0, 0.0]), 2, "bilinear")
    assert (found == frame[5, 3][:, None, None]).all()


@pytest.mark.parametrize("box", [(0, 0, 1, 1), (0.21, 0.13, 0.52, 0.77), (0.4, 0.4, 0.3, 0.2)])
def test_two_sizes_show_the_same(box: tuple[float, ...]) -> None:
    frame = scene(300, 420)
    large, small = (resample(frame, np.array(box), size, "bicubic").astype(float) for size in (224, 128))
    # both brought to 32 pixels a side by plain means; an offset of one pixel at 224 would be 0.14 pixels there
    means = [image.reshape(3, 32, image.shape[1] // 32, 32, -1).mean((2, 4)) for image in (large, small)]
    assert np.abs(means[0] - means[1]).mean() < 1
    assert np.abs(np.roll(means[0], 1, axis=2) - means[1]).mean() > 3


def test_on_a_cpu_a_batch_is_pillows_own() -> None:
    frames = np.stack([noise(30, 20, seed=seed) for seed in range(2)])
    rows, shows = np.array([[0.1, 0.2, 0.7, 0.5], [0, 0, 1, 1], [0.5, 0.5, 0.1, 0.1]], np.float32), np.array([1, 0, 1])
    found = resample_batch(torch.from_numpy(frames), rows, shows, 9, "bicubic")
    assert torch.equal(found, by_products(torch.from_numpy(frames), rows, shows, 9, "bicubic"))
    assert resample_batch(torch.from_numpy(frames), rows[:0], shows[:0], 9, "bicubic").shape == (0, 3, 9, 9)
