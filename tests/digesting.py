"""A teacher whose output is a digest of exactly what it was given, and caches of what it says."""

import hashlib

import numpy as np
import torch

from featurecache.draw import draw_views, plan_views
from featurecache.extract import extract
from featurecache.inputs import ImageInput
from featurecache.plan import plan_part
from featurecache.rows import list_rows
from featurecache.store.reader import open_cache
from featurecache.store.seals import seal
from featurecache.store.writer import create_cache
from featurecache.store_inputs import plan_inputs, store_inputs, stored_tokens
from featurecache.types import OutputSpec
from student.data import CachedData
from student.join import join
from tests.sample_inputs import text_input

DIGITS = 8


def digests(inputs):
    """float32 (batch, DIGITS): bytes of the SHA-256 of each image, or of the ids of each text without its padding."""
    if "images" in inputs:
        each = [image.numpy().tobytes() for image in inputs["images"]]
    else:
        pairs = zip(inputs["ids"], inputs["mask"], strict=True)
        each = [ids[mask].numpy().astype("<i8").tobytes() for ids, mask in pairs]
    rows = [list(hashlib.sha256(data).digest()[:DIGITS]) for data in each]
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, DIGITS)


class Digesting:
    """ "embedding": the digest of an input, so that a cache tells byte for byte what its teacher saw."""

    def __init__(self, modality="image", *, size=24, name="digesting"):
        self.name = name
        self.input = ImageInput(size=size, crop_pct=0.9) if modality == "image" else text_input()
        self.outputs = (OutputSpec("embedding", (DIGITS,)),)
        self.given = 0
        """Inputs so far."""

    def __call__(self, batch):
        self.given += len(next(iter(batch.values())))
        return {"embedding": digests(batch)}

    def to(self, device):
        return self

    def identity(self):
        return {"library": "tests", "model": self.name}


def begin(path, source, augmentation, *, views, seed=3, split="train"):
    """A cache with the rows of a source, and views 1 to `views` drawn; tokens of texts are stored before."""
    objects = create_cache(path, source={})
    for _ in list_rows(source, objects, split):
        pass
    if augmentation is not None:
        draw(objects, source, augmentation, views=(1, views), seed=seed, split=split)
    return objects


def draw(objects, source, augmentation, *, views, seed=3, split="train"):
    """Views [first, stop) of a source, in one go."""
    part = plan_views(source, split, augmentation, seed=seed, views=views)
    for _ in draw_views(source, objects, part, augmentation, tokens=_tokens(objects, source, split)):
        pass
    return part


def _tokens(objects, source, split):
    if source.modality == "image":
        return None
    network_input = text_input()
    inputs = plan_inputs(source, split, network_input)
    for _ in store_inputs(source, objects, inputs, network_input):
        pass
    return stored_tokens(objects, inputs, network_input)


def planned(source, augmentation, *, views, seed=3, teacher=None, split="train"):
    """The part of a digesting teacher in views [0, views)."""
    teacher = teacher or Digesting(source.modality)
    options = {"augmentation": augmentation, "seed": seed, "views": (0, views), "encode": {"embedding": "float32"}}
    return plan_part(teacher, source, split, **options)


def taught(path, source, augmentation, *, views=4, seed=3, teacher=None, **options):
    """The sealed cache of a digesting teacher over a source."""
    teacher = teacher or Digesting(source.modality)
    objects = begin(path, source, augmentation, views=views, seed=seed)
    part = planned(source, augmentation, views=views, seed=seed, teacher=teacher)
    for _ in extract(teacher, source, objects, part, **options):
        pass
    seal(objects)
    return open_cache(path)


def students(cache, source, network_input=None, *, views=None, outputs=("embedding",), **options):
    """What a student of a cache is given, with the teacher's own input unless another is named."""
    reader = cache.split("train")
    count = views.count if views else 1
    joined = join(reader, source, outputs, views=count, missing="skip", max_invalid=1.0)
    extra = {"views": views} if views else {}
    return CachedData(
        source,
        network_input or Digesting(source.modality).input,
        samples=joined.samples,
        labels=joined.labels,
        rows=joined.rows,
        sample_of=joined.sample_of,
        reader=reader,
        outputs=outputs,
        **extra,
        **options,
    )


def shards(path, kind=None):
    """Every file that holds numbers, by its place in the cache; of one part where it is named."""
    found = (path / "train").rglob("c/**/*")
    return {str(p.relative_to(path)): p.read_bytes() for p in found if p.is_file() and (not kind or kind in p.parts)}


def told(reader, rows, views):
    """float32 (rows * views, DIGITS): what the teacher was given, of each row in each view."""
    every = np.repeat(rows, len(views)), np.tile(views, len(rows))
    return reader.read(every[0], view=every[1])["embedding"]
