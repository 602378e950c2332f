"""From encoded bytes to what a person would call the sample: a uint8 image or a string."""

import io
import warnings

import numpy as np
from PIL import Image, UnidentifiedImageError

from featurecache.errors import BadSampleError
from featurecache.types import Decoded, Modality, Reason, Sample

__all__ = ["IMAGE_FORMATS", "MAX_PIXELS", "decode"]

IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""The decoders that may see a sample's bytes; Pillow has others with a history of holes."""

MAX_PIXELS = 89_478_485
"""Pillow's own limit against decompression bombs, as an error here and not a warning."""


def decode(sample: Sample, modality: Modality) -> Decoded:
    """A uint8 array (height, width, 3) or a string. Raises BadSampleError with the reason."""
    if sample.problem is not Reason.VALID:
        raise BadSampleError(sample.problem, sample.key)
    return _image(sample.encoded) if modality == "image" else _text(sample.encoded)


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
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, EOFError, IndexError) as error:
        raise BadSampleError(Reason.CORRUPT_IMAGE, str(error)) from None
