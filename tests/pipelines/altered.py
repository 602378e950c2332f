"""A folder of images that are altered later, without a change of their sizes."""

import io

import numpy as np
from PIL import Image


def image_folder(folder, count=24):
    """Bitmaps of two classes, 20 x 26 pixels."""
    rng = np.random.default_rng(1)
    for number in range(count):
        path = folder / "ab"[number % 2] / f"{number:02d}.bmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 26, 3), dtype=np.uint8)).save(path)
    return folder


def with_another_pixel(folder, name="a/04.bmp"):
    """Change one pixel of a bitmap, and neither its size nor its header."""
    path = folder / name
    data = bytearray(path.read_bytes())
    data[-100] ^= 255
    assert Image.open(io.BytesIO(data)).size == (26, 20)
    path.write_bytes(data)
    return path
