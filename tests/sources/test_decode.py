"""From encoded bytes to pixels and strings, and the reason when that fails."""

import io

import numpy as np
import pytest
from PIL import Image

from featurecache.errors import BadSampleError
from featurecache.sources import decode
from featurecache.types import Reason, Sample
from tests.sources.make_data import huge_png, picture


def reason(encoded: bytes, modality: str = "image", **fields: object) -> Reason:
    with pytest.raises(BadSampleError) as error:
        decode(Sample("key", encoded, **fields), modality)
    return error.value.reason


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "PPM"])
def test_pixels(format):
    expected = np.random.default_rng(3).integers(0, 256, (8, 10, 3), dtype=np.uint8)
    assert np.array_equal(decode(Sample("key", picture(3, format)), "image"), expected)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "LA"])
def test_every_mode_becomes_rgb(mode):
    image = Image.new("RGB", (5, 4), (255, 255, 255)).convert(mode)
    stream = io.BytesIO()
    image.save(stream, "TIFF")
    assert np.array_equal(decode(Sample("key", stream.getvalue()), "image"), np.full((4, 5, 3), 255, np.uint8))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "BMP"])
def test_truncated_images(format):
    encoded = picture(0, format, size=64)
    assert reason(encoded[: len(encoded) // 2]) is Reason.CORRUPT_IMAGE


@pytest.mark.parametrize("encoded", [b"", b"no image", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"\x89PNG\r\n\x1a\n"])
def test_no_images(encoded):
    assert reason(encoded) is Reason.CORRUPT_IMAGE


@pytest.mark.parametrize("size", [(100_000, 100_000), (10_000, 10_000)], ids=["beyond Pillow's", "beyond ours"])
def test_decompression_bombs(size):
    assert reason(huge_png(*size)) is Reason.IMAGE_TOO_LARGE


def test_text():
    assert decode(Sample("key", "größer 😀".encode()), "text") == "größer 😀"
    assert reason("größer".encode("latin-1"), "text") is Reason.NOT_UTF8
    assert reason("größer".encode("utf-16"), "text") is Reason.NOT_UTF8
    assert reason(b"", "text") is Reason.EMPTY_TEXT
    assert reason(" \n\u00a0".encode(), "text") is Reason.EMPTY_TEXT


def test_a_problem_of_the_source_is_passed_on():
    assert reason(picture(0), problem=Reason.UNREADABLE) is Reason.UNREADABLE
