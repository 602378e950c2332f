"""Images and texts that are made up, have classes a model can learn, and are the same on every machine."""

import colorsys
import hashlib
import io
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image

from featurecache.errors import SourceError
from featurecache.fingerprint import hash_rows
from featurecache.sources.packed import Keys
from featurecache.types import Modality, Sample

__all__ = ["SyntheticImages", "SyntheticTexts"]

_DIRECTIONS = ((1, 0), (0, 1), (1, 1), (1, -1))
_SYLLABLES = ("ba", "de", "fi", "go", "hu", "ka", "le", "mi", "no", "pu", "ra", "se", "ti", "vo", "wu", "za")
_COMMON = ("the", "of", "and", "with", "for", "in", "on", "to", "a", "from", "by", "as", "is", "at", "all")
_WORDS_A_CLASS = 12


class SyntheticImages:
    """Striped PNG images with noise: colour and direction tell the class, the rest is chance from (seed, index)."""

    modality: Modality = "image"
    keys: Sequence[str]

    def __init__(self, count: int, *, classes: int = 4, size: int = 32, seed: int = 0) -> None:
        """`size` is in pixels a side."""
        self.keys, self.labels, self.class_names = _rows("synthetic", count, classes)
        self._size, self._seed = size, seed

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> Sample:
        label = int(self.labels[index])
        pixels = self._paint(_generator(self._seed, self.keys[index]), label)
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "PNG", compress_level=0)  # stored: the same bytes with any build of zlib
        return Sample(self.keys[index], stream.getvalue(), label)

    def iter(self, start: int, stop: int) -> Iterator[Sample]:
        """Samples [start, stop) in order."""
        return map(self.__getitem__, range(start, stop))

    def fingerprint(self) -> str:
        """Hash of every (key, bytes of PNG)."""
        return hash_rows(self.keys, (len(sample.encoded) for sample in self.iter(0, len(self))))

    def _paint(self, chance: np.random.Generator, label: int) -> np.ndarray:
        """uint8 (size, size, 3), by integer arithmetic alone: a float may differ between processors."""
        across, down = _DIRECTIONS[label % len(_DIRECTIONS)]
        width = max(2, self._size // 8) + label // len(_DIRECTIONS)
        rows, columns = np.indices((self._size, self._size))
        stripes = (across * columns + down * rows + chance.integers(2 * width)) // width % 2
        hue = label / len(self.class_names)
        colour = np.array([int(255 * part) for part in colorsys.hsv_to_rgb(hue, 0.6, 0.8)])
        noise = chance.integers(-40, 41, size=(self._size, self._size, 3))
        return np.clip(colour // (1 + stripes[..., None]) + noise, 0, 255).astype(np.uint8)


class SyntheticTexts:
    """Sentences of invented words, some of them their class's own, mixed with common ones."""

    modality: Modality = "text"
    keys: Sequence[str]

    def __init__(self, count: int, *, classes: int = 4, seed: int = 0) -> None:
        self.keys, self.labels, self.class_names = _rows("synthetic-text", count, classes)
        self._seed = seed

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> Sample:
        label = int(self.labels[index])
        return Sample(self.keys[index], _sentence(_generator(self._seed, self.keys[index]), label).encode(), label)

    def iter(self, start: int, stop: int) -> Iterator[Sample]:
        """Samples [start, stop) in order."""
        return map(self.__getitem__, range(start, stop))

    def fingerprint(self) -> str:
        """Hash of every (key, bytes of text)."""
        return hash_rows(self.keys, (len(sample.encoded) for sample in self.iter(0, len(self))))


def _rows(name: str, count: int, classes: int) -> tuple[Sequence[str], np.ndarray, tuple[str, ...]]:
    if count < 1 or classes < 1:
        raise SourceError(f"no {name} data has {count} samples of {classes} classes", hint="both are at least 1")
    keys = Keys.of(f"{name}/{index:06d}" for index in range(count))
    return keys, np.arange(count, dtype=np.int64) % classes, tuple(f"class-{label}" for label in range(classes))


def _generator(seed: int, key: str) -> np.random.Generator:
    digest = hashlib.sha256(f"{seed}/{key}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "little"))


def _sentence(chance: np.random.Generator, label: int) -> str:
    words = []
    for _ in range(chance.integers(8, 17)):
        own = chance.integers(2) == 0
        words.append(_word(label * _WORDS_A_CLASS + int(chance.integers(_WORDS_A_CLASS))) if own else _common(chance))
    return " ".join(words).capitalize() + "."


def _common(chance: np.random.Generator) -> str:
    return _COMMON[int(chance.integers(len(_COMMON)))]


def _word(number: int) -> str:
    """The number as syllables, scattered by an odd factor so that neighbours look different; distinct below 4,096."""
    scattered = number * 2_654_435_761 % 4096 if number < 4096 else number
    word = ""
    while scattered or not word:
        scattered, digit = divmod(scattered, len(_SYLLABLES))
        word += _SYLLABLES[digit]
    return word
