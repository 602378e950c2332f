"""Small data with samples that cannot be decoded."""

import io

import numpy as np
from PIL import Image

from featurecache.fingerprint import hash_rows
from featurecache.sources.image_folder import ImageFolder
from featurecache.types import NO_LABEL, Reason, Sample


def images_with_a_truncated_one(folder):
    """Five JPEGs of two classes; the third file is cut off in the middle."""
    rng = np.random.default_rng(0)
    for number in range(5):
        stream = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(stream, "JPEG")
        broken = number == 2
        path = folder / ("cat" if number % 2 else "dog") / f"{number}{'-broken' if broken else ''}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(stream.getvalue()[: 700 if broken else None])
    return ImageFolder(folder)


class Encoded:
    """A source of texts as bytes, which may be changed while it is read."""

    modality = "text"
    class_names = ()

    def __init__(self, contents):
        """None stands for a sample that cannot be read."""
        self.contents = list(contents)
        self.keys = [f"text-{number}" for number in range(len(self.contents))]
        self.labels = np.full(len(self.contents), NO_LABEL, np.int64)

    def __len__(self):
        return len(self.keys)

    def __getitem__(self, index):
        content = self.contents[index]
        return Sample(self.keys[index], content or b"", None, Reason.UNREADABLE if content is None else Reason.VALID)

    def iter(self, start, stop):
        return map(self.__getitem__, range(start, stop))

    def fingerprint(self):
        return hash_rows(self.keys, (len(content or b"") for content in self.contents))


def texts_with_bad_ones():
    """Six texts: not UTF-8 at 1, blank at 3, unreadable at 4."""
    return Encoded([b"a first text", "größe".encode("latin-1"), "größe".encode(), b" \n", None, b"and the last"])
