"""What every teacher must do, whatever is behind it."""

from pathlib import Path

import numpy as np
import pytest
import torch

from featurecache.fingerprint import canonical_json
from featurecache.inputs import ImageInput
from featurecache.teachers.base import Teacher
from featurecache.types import Decoded

TEXTS = ["a short one", "a rather longer text, with more words in it than the first", "three", "and a fourth text"]


def samples(count: int, modality: str) -> list[Decoded]:
    """Decoded samples that differ from one another, images in several shapes."""
    if modality == "text":
        return [TEXTS[index % len(TEXTS)] for index in range(count)]
    rng = np.random.default_rng(0)
    shapes = [(40 + 13 * index, 70 - 9 * index, 3) for index in range(count)]
    return [rng.integers(0, 256, shape, dtype=np.uint8) for shape in shapes]


class TeacherContract:
    """Subclass it and say how to make the teacher; `seed` chooses its weights."""

    def make_teacher(self, tmp_path: Path, seed: int = 0) -> Teacher:
        raise NotImplementedError

    @pytest.fixture
    def teacher(self, tmp_path: Path) -> Teacher:
        return self.make_teacher(tmp_path)

    @pytest.fixture
    def items(self, teacher: Teacher) -> list:
        return [teacher.input.prepare(sample) for sample in samples(4, teacher.input.modality)]

    def test_outputs_agree_with_their_specs(self, teacher, items):
        outputs = teacher(teacher.input.collate(items))
        assert list(outputs) == [spec.name for spec in teacher.outputs]
        assert teacher.outputs[0].name == "embedding"
        for spec in teacher.outputs:
            assert outputs[spec.name].shape == (4, *spec.shape)
            assert outputs[spec.name].is_floating_point()
            assert len(spec.classes) in (0, *spec.shape)

    def test_different_samples_give_different_embeddings(self, teacher, items):
        embedding = teacher(teacher.input.collate(items))["embedding"]
        assert not torch.allclose(embedding[0], embedding[1], atol=1e-6)

    def test_the_same_batch_gives_the_same_bits(self, teacher, items):
        batch = teacher.input.collate(items)
        first, second = teacher(batch), teacher(batch)
        assert all(torch.equal(first[name], second[name]) for name in first)

    def test_a_row_depends_on_its_sample_alone(self, teacher, items):
        # for texts the batch also decides how much each row is padded
        together = teacher(teacher.input.collate(items))
        for row, item in enumerate(items):
            alone = teacher(teacher.input.collate([item]))
            for name, output in together.items():
                torch.testing.assert_close(alone[name][0], output[row], rtol=1e-4, atol=1e-5)

    def test_nothing_has_gradients(self, teacher, items):
        outputs = teacher(teacher.input.collate(items))
        assert not any(output.requires_grad for output in outputs.values())

    def test_moving_returns_the_teacher(self, teacher):
        assert teacher.to("cpu") is teacher

    def test_identity_is_stable_and_plain(self, teacher, tmp_path):
        identity = teacher.identity()
        assert identity == teacher.identity() == self.make_teacher(tmp_path).identity()
        assert str(tmp_path) not in canonical_json(identity).decode()
        assert {"library", "model", "config", "outputs"} <= set(identity)

    def test_other_weights_are_another_teacher(self, teacher, tmp_path):
        assert self.make_teacher(tmp_path, seed=1).identity() != teacher.identity()

    def test_its_input_can_be_described(self, teacher):
        kind = "image" if isinstance(teacher.input, ImageInput) else "text"
        assert teacher.input.modality == kind == teacher.input.to_json()["kind"]
