"""From encoded bytes to what a person would call the sample: a uint8 image or a string."""

import io
import warnings

import numpy as np
from PIL import Image, UnidentifiedImageError

from featurecache.errors import BadSampleError
from featurecache.types import Decoded, Modality, Reason, Sample

__all__ = ["IMAGE_FORMATS", "MAX_PIXELS", "decode", "image_size"]

IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""The decoders that may see a sample's bytes; Pillow has others with a history of holes."""

MAX_PIXELS = 89_478_485
"""Pillow's own limit against decompression bombs, as an error here and not a warning."""


_BROKEN = (UnidentifiedImageError, OSError, SyntaxError, ValueError, EOFError, IndexError)
"""What Pillow raises for bytes that are no image, or a damaged one."""


def decode(sample: Sample, modality: Modality) -> Decoded:
    """A uint8 array (height, width, 3) or a string. Raises BadSampleError with the reason."""
    if sample.problem is not Reason.VALID:
        raise BadSampleError(sample.problem, sample.key)
    return _image(sample.encoded) if modality == "image" else _text(sample.encoded)


def image_size(encoded: bytes) -> tuple[int, int]:
    """(height, width) of an encoded image, from its header alone; (0, 0) for what has none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            width, height = Image.open(io.BytesIO(encoded), formats=IMAGE_FORMATS).size
            return (height, width) if width * height <= MAX_PIXELS else (0, 0)
    except (*_BROKEN, Image.DecompressionBombError):
        return 0, 0


def _text(encoded: bytes) -> str:
    try:
        text = encoded.decode()
    except UnicodeDecodeError as error:
        raise BadSampleError(Reason.NOT_UTF8, str(error)) from None
    if not text.strip():
        raise BadSampleError(Reason.EMPTY_TEXT)
    return text


def _image(encoded: bytes) -> np.ndarray:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a bad EXIF block is no reason to lose the image
            image = Image.open(io.BytesIO(encoded), formats=IMAGE_FORMATS)
            if image.width * image.height > MAX_PIXELS:
                raise BadSampleError(Reason.IMAGE_TOO_LARGE, f"{image.width} x {image.height}")
            return np.asarray(image.convert("RGB"))
    except Image.DecompressionBombError as error:
        raise BadSampleError(Reason.IMAGE_TOO_LARGE, str(error)) from None
    except _BROKEN as error:
        raise BadSampleError(Reason.CORRUPT_IMAGE, str(error)) from None
