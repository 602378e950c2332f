"""Images for the tests of augmentations: noise for every value, slopes and edges for what interpolates."""

import numpy as np


def noise(height: int, width: int, *, seed: int = 0) -> np.ndarray:
    """uint8 (height, width, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def scene(height: int, width: int, *, seed: int = 0) -> np.ndarray:
    """uint8 (height, width, 3): a slope of colour with a few rectangles on it."""
    generator = np.random.default_rng(seed)
    down, across = np.mgrid[:height, :width]
    image = np.stack([255 * across / width, 255 * down / height, 127 + 100 * np.sin(across / 9)], axis=2)
    for _ in range(6):
        top, left = generator.integers(0, height), generator.integers(0, width)
        image[top : top + height // 4, left : left + width // 3] = generator.integers(0, 256, 3)
    return image.astype(np.uint8)


def batch(count: int, side: int, *, seed: int = 0) -> np.ndarray:
    """uint8 (count, 3, side, side): scenes and noise in turn."""
    images = [(scene if number % 2 else noise)(side, side, seed=seed + number) for number in range(count)]
    return np.stack(images).transpose(0, 3, 1, 2).copy()
