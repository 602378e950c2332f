"""The random teacher, over images and over text."""

import pytest
import torch

from featurecache.inputs import TextInput
from featurecache.teachers.random_projection import RandomProjection, byte_tokenizer_json
from tests.contracts.teacher_contract import TeacherContract


class TestRandomImages(TeacherContract):
    def make_teacher(self, tmp_path, seed=0):
        return RandomProjection("image", dim=8, classes=5, seed=seed)


class TestRandomText(TeacherContract):
    def make_teacher(self, tmp_path, seed=0):
        return RandomProjection("text", dim=8, seed=seed)


def test_bytes_are_tokens():
    tokens = TextInput(byte_tokenizer_json())
    assert tokens.vocabulary_size == 257
    assert tokens.padding_id == 256
    assert len(tokens.prepare("naïve ☕")) == len("naïve ☕".encode())
    assert byte_tokenizer_json() == byte_tokenizer_json()


@pytest.mark.parametrize("text", ["", "x"])
def test_the_shortest_texts(text):
    teacher = RandomProjection("text", dim=8)
    embedding = teacher(teacher.input.collate([teacher.input.prepare(text)]))["embedding"]
    assert embedding.shape == (1, 8)
    assert embedding.isfinite().all()


def test_order_matters():
    teacher = RandomProjection("text", dim=8)
    embedding = teacher(teacher.input.collate([teacher.input.prepare(text) for text in ("abcd", "dcba")]))["embedding"]
    assert not torch.allclose(embedding[0], embedding[1])


def test_embeddings_are_not_saturated():
    teacher = RandomProjection("image", dim=64)
    images = torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8)
    assert 0.2 < teacher({"images": images})["embedding"].std() < 0.9
