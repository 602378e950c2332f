"""scikit-learn's 1,797 handwritten digits: real images that need no download."""

import io
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image

from featurecache.errors import SourceError
from featurecache.fingerprint import hash_rows
from featurecache.types import Modality, Sample

__all__ = ["Digits"]


class Digits:
    """8 x 8 grey images as PNG; every fifth is in split "test", the others are in "train".

    Raises SourceError for another split, and where scikit-learn is not installed.
    """

    modality: Modality = "image"
    keys: Sequence[str]

    def __init__(self, split: str) -> None:
        if split not in ("train", "test"):
            raise SourceError(f"digits has no split {split!r}", hint="it has train and test")
        try:
            from sklearn.datasets import load_digits
        except ImportError:
            hint = "pip install 'featurecache[demo]'"
            raise SourceError("the digits come with scikit-learn, which is not installed", hint=hint) from None
        digits = load_digits()
        rows = [row for row in range(len(digits.images)) if (row % 5 == 0) == (split == "test")]
        self.class_names = tuple(map(str, digits.target_names))
        self.keys = [f"digits/{row:04d}" for row in rows]
        self.labels = digits.target[rows].astype(np.int64)
        self._encoded = [_png(digits.images[row]) for row in rows]

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> Sample:
        return Sample(self.keys[index], self._encoded[index], int(self.labels[index]))

    def iter(self, start: int, stop: int) -> Iterator[Sample]:
        """Samples [start, stop) in order."""
        return map(self.__getitem__, range(start, stop))

    def fingerprint(self) -> str:
        """Hash of every (key, bytes of PNG)."""
        return hash_rows(self.keys, map(len, self._encoded))


def _png(image: np.ndarray) -> bytes:
    """float (8, 8) in 0 to 16 -> PNG."""
    stream = io.BytesIO()
    grey = np.round(image * 255 / 16).astype(np.uint8)
    Image.fromarray(grey).save(stream, "PNG", compress_level=0)  # stored: the same bytes with any build of zlib
    return stream.getvalue()
