"""A student of a few hundred weights, and data that it can learn."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from featurecache.errors import UsageError
from featurecache.inputs import TextInput
from featurecache.teachers.random_projection import byte_tokenizer_json
from student.data import CachedData
from student.join import join
from student.models import Student
from student.objectives.base import Dimensions
from student.objectives.weighted import make_objective
from tests.small_caches import CLASSES, DIM, Texts, write_cache

WIDTH = 12
CLASS_NAMES = ("fruit", "metal", "river")
_WORDS = {
    "fruit": ("apple", "pear", "plum", "fig"),
    "metal": ("iron", "zinc", "tin", "lead"),
    "river": ("rhine", "nile", "oder", "volga"),
}


class BagOfBytes(nn.Module):
    """The mean of byte embeddings, a layer, and perhaps dropout."""

    def __init__(self, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.name = "bag-of-bytes"
        self.features = WIDTH
        self.input = TextInput(byte_tokenizer_json())
        self.embedding = nn.Embedding(self.input.vocabulary_size, 16)
        self.layer = nn.Linear(16, WIDTH)
        self.dropout = nn.Dropout(dropout)

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        weights = inputs["mask"].unsqueeze(2).float()
        mean = (self.embedding(inputs["ids"]) * weights).sum(1) / weights.sum(1)
        return self.dropout(torch.tanh(self.layer(mean)))

    def load_pretrained(self, source: str) -> None:
        raise UsageError(f"nobody has trained a bag of bytes, {source} neither")

    def depths(self) -> dict:
        return {"embedding.weight": 0, "layer.weight": 1, "layer.bias": 1}

    def to_json(self) -> dict:
        return {"kind": "bag-of-bytes"}


def classified_texts(count: int) -> Texts:
    """Texts of three words of their class, under shuffled keys."""
    rng = np.random.default_rng(0)
    names = [CLASS_NAMES[number % 3] for number in range(count)]
    keys = [f"key-{number:04d}" for number in rng.permutation(count)]
    texts = {key: " ".join(rng.choice(_WORDS[name], 3)) for key, name in zip(keys, names, strict=True)}
    return Texts(texts, dict(zip(keys, names, strict=True)), CLASS_NAMES)


def make_data(folder: Path, count: int = 64, **options) -> CachedData:
    """Classified texts with both outputs of the teacher."""
    source = classified_texts(count)
    reader = write_cache(folder, source).split("train")
    joined = join(reader, source, ["embedding", "logits"])
    return CachedData(
        source,
        TextInput(byte_tokenizer_json()),
        samples=joined.samples,
        labels=joined.labels,
        rows=joined.rows,
        reader=reader,
        outputs=("embedding", "logits"),
        **options,
    )


def make_parts(text: str = "kl(temperature=1),ce", *, dropout: float = 0.0, seed: int = 0):
    """A student and the objective of that text."""
    torch.manual_seed(seed)
    targets = {"embedding": DIM, "logits": CLASSES}
    dimensions = Dimensions(features=WIDTH, targets=targets, labels=torch.arange(64) % 3)
    objective = make_objective(text, dimensions, [*targets, "labels"])
    widths = {"labels": len(CLASS_NAMES), **targets}
    return Student(BagOfBytes(dropout=dropout), {head: widths[head] for head in objective.heads}), objective
