"""Sources of images of many shapes and of texts of many lengths, and tokenizers, for tests of inputs in a cache."""

import io
import json

import numpy as np
import tokenizers
from PIL import Image

from featurecache.fingerprint import hash_rows
from featurecache.inputs import TextInput
from featurecache.rows import list_rows
from featurecache.store.writer import create_cache
from featurecache.teachers.random_projection import byte_tokenizer_json
from featurecache.types import NO_LABEL, Sample

SHAPES = ((60, 90), (90, 60), (75, 75), (41, 128), (128, 41), (64, 65))
"""Height and width of the pictures."""


def picture(number, height, width):
    """uint8 (height, width, 3): soft waves and one hard edge, other ones for each number."""
    down, across = np.mgrid[:height, :width]
    down, across = down / height, across / width
    waves = [np.sin(2 * np.pi * ((1 + number % 3) * across + (c + 1) * down) + number) for c in range(3)]
    edge = 40 * (across > 0.3 + 0.1 * (number % 4))
    return np.clip(120 + 70 * np.stack(waves, 2) + edge[:, :, None], 0, 255).astype(np.uint8)


def png(pixels):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


class Pictures:
    """PNG images in memory; their bytes may be changed while they are read."""

    modality = "image"
    class_names = ("even", "odd")

    def __init__(self, contents):
        self.contents = list(contents)
        self.keys = [f"picture-{number}" for number in range(len(self.contents))]
        self.labels = np.arange(len(self.contents)) % 2

    @classmethod
    def of_all_shapes(cls, count=12):
        return cls(png(picture(number, *SHAPES[number % len(SHAPES)])) for number in range(count))

    def __len__(self):
        return len(self.keys)

    def __getitem__(self, index):
        return Sample(self.keys[index], self.contents[index], int(self.labels[index]))

    def iter(self, start, stop):
        return map(self.__getitem__, range(start, stop))

    def fingerprint(self):
        return hash_rows(self.keys, map(len, self.contents))


class Words:
    """Texts of 1 to 60 letters, made up from their numbers."""

    modality = "text"
    class_names = ()

    def __init__(self, count):
        rng = np.random.default_rng(7)
        self.contents = ["".join(rng.choice(list("abc dé"), rng.integers(0, 60))) + "x" for _ in range(count)]
        self.keys = [f"text-{number}" for number in range(count)]
        self.labels = np.full(count, NO_LABEL)

    def __len__(self):
        return len(self.keys)

    def __getitem__(self, index):
        return Sample(self.keys[index], self.contents[index].encode())

    def iter(self, start, stop):
        return map(self.__getitem__, range(start, stop))

    def fingerprint(self):
        return hash_rows(self.keys, (len(text.encode()) for text in self.contents))


def special_tokenizer_json():
    """A tokenizer of bytes that puts [CLS] before and [SEP] behind every text."""
    tokenizer = tokenizers.Tokenizer.from_str(byte_tokenizer_json())
    tokenizer.add_special_tokens(["[CLS]", "[SEP]", "[MASK]"])
    ends = [(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=ends
    )
    return json.dumps(json.loads(tokenizer.to_str()), sort_keys=True)


def text_input(max_length=32):
    return TextInput(special_tokenizer_json(), max_length=max_length)


def listed(path, source, split="train"):
    """A cache that lists a source."""
    objects = create_cache(path, source={})
    for _ in list_rows(source, objects, split):
        pass
    return objects
