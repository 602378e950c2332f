"""Small sources and caches, for tests of what reads them."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from torch import Tensor

from featurecache.extract import extract
from featurecache.fingerprint import hash_rows
from featurecache.plan import plan_part
from featurecache.rows import list_rows
from featurecache.store.reader import Cache, open_cache
from featurecache.store.seals import seal
from featurecache.store.writer import create_cache
from featurecache.teachers.random_projection import RandomProjection
from featurecache.types import NO_LABEL, Sample

DIM, CLASSES = 6, 5


class Texts:
    """A source of texts by key, in the order given."""

    modality = "text"

    def __init__(self, texts: Mapping[str, str], labels: Mapping[str, str] | None = None, class_names=()) -> None:
        """`labels` has the class name of the keys that have one."""
        self.texts = dict(texts)
        self.keys = list(texts)
        self.class_names = tuple(class_names)
        names = labels or {}
        self.labels = np.array(
            [self.class_names.index(names[key]) if key in names else NO_LABEL for key in texts], np.int64
        )

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> Sample:
        label = int(self.labels[index])
        key = self.keys[index]
        return Sample(key, self.texts[key].encode(), None if label == NO_LABEL else label)

    def iter(self, start: int, stop: int) -> Iterator[Sample]:
        return map(self.__getitem__, range(start, stop))

    def fingerprint(self) -> str:
        return hash_rows(self.keys, (len(text.encode()) for text in self.texts.values()))


def teacher() -> RandomProjection:
    """The teacher of `write_cache`: "embedding" (DIM,) and "logits" (CLASSES,)."""
    return RandomProjection("text", dim=DIM, classes=CLASSES)


def teacher_says(text: str) -> dict[str, Tensor]:
    """What the teacher gives for one text, asked directly: rows (DIM,) and (CLASSES,)."""
    network = teacher()
    return {name: value[0] for name, value in network(network.input.collate([network.input.prepare(text)])).items()}


def write_cache(path: Path, source: Texts, *, split: str = "train", encode: Mapping[str, str] | None = None) -> Cache:
    """The teacher's outputs over the source, as float32 unless `encode` says otherwise; sealed."""
    network = teacher()
    encodings = {"embedding": "float32", "logits": "float32", **(encode or {})}
    objects = create_cache(path, source={})
    for _ in list_rows(source, objects, split):
        pass
    for _ in extract(network, source, objects, plan_part(network, source, split, encode=encodings)):
        pass
    seal(objects)
    return open_cache(path)


def sentences(count: int) -> dict[str, str]:
    """Texts that differ, under keys whose order is not that of their numbers."""
    rng = np.random.default_rng(0)
    words = [f"word{number}" for number in range(50)]
    return {f"key-{number * 7 % count:03d}": " ".join(rng.choice(words, 5)) for number in range(count)}
