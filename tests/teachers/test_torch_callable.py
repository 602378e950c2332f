"""Teachers of one's own, from a module file on the path."""

import importlib
import sys
import types

import pytest
import torch
from safetensors.torch import save_file

from featurecache.errors import TeacherError
from featurecache.inputs import TextInput
from featurecache.teachers.torch_callable import TorchTeacher
from tests.contracts.teacher_contract import TeacherContract

SOURCE = """
import functools
import torch
from torch import nn
from featurecache.inputs import ImageInput, TextInput
from featurecache.teachers.random_projection import byte_tokenizer_json

class Pixels(nn.Module):
    def __init__(self, seed=0, dim=4):
        super().__init__()
        torch.manual_seed(seed)
        self.linear = nn.Linear(3 * 8 * 8, dim)
        self.input = ImageInput(size=8)

    def forward(self, images):
        return {"logits": self.linear(images.flatten(1))[:, :2], "embedding": self.linear(images.flatten(1))}

ready = Pixels()

class Words(nn.Module):
    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.table = nn.Embedding(257, 6)
        self.input = TextInput(byte_tokenizer_json())

    def forward(self, ids, mask):
        return (self.table(ids) * mask[..., None]).sum(1)

class EachWord(Words):
    def forward(self, ids, mask):
        return {"embedding": super().forward(ids, mask), "hidden.0": self.table(ids)}

def colours():
    return mean_colour

def mean_colour(images):
    return images.mean(dim=(2, 3))

def broken():
    return lambda images: images.flatten().long()

def brighter():
    return functools.partial(mean_colour)

def raising():
    raise RuntimeError("no such luck")
"""


@pytest.fixture(autouse=True)
def _own_module(tmp_path, monkeypatch):
    (tmp_path / "own_teachers.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "own_teachers", raising=False)


class TestOwnImages(TeacherContract):
    def make_teacher(self, tmp_path, seed=0):
        return TorchTeacher("own_teachers:Pixels", model_kwargs={"seed": seed})


class TestOwnText(TeacherContract):
    def make_teacher(self, tmp_path, seed=0):
        return TorchTeacher("own_teachers:Words", model_kwargs={"seed": seed})


def test_an_instance_is_used_as_it_is():
    assert [spec.shape for spec in TorchTeacher("own_teachers:ready").outputs] == [(4,), (2,)]


def test_what_it_makes_of_each_token_is_kept_for_each_token():
    teacher = TorchTeacher("own_teachers:EachWord")
    embedding, hidden = teacher.outputs
    assert (embedding.shape, embedding.longest) == ((6,), 0)
    assert (hidden.name, hidden.shape, hidden.longest) == ("hidden.0", (6,), teacher.input.max_length)


def test_text_is_read_from_its_own_input():
    assert isinstance(TorchTeacher("own_teachers:Words").input, TextInput)


def test_a_function_takes_images_as_imagenet_models_do():
    teacher = TorchTeacher("own_teachers:colours", img_size=32, crop_pct=1.0)
    white = torch.full((1, 3, 32, 32), 255, dtype=torch.uint8)
    expected = [(1 - mean) / std for mean, std in zip(teacher.input.mean, teacher.input.std, strict=True)]
    torch.testing.assert_close(teacher({"images": white})["embedding"][0], torch.tensor(expected))
    assert "source_sha256" in teacher.identity()


def test_weights_from_a_file(tmp_path):
    source = TorchTeacher("own_teachers:Pixels", model_kwargs={"seed": 5})
    save_file(importlib.import_module("own_teachers").Pixels(seed=5).state_dict(), tmp_path / "w.safetensors")
    loaded = TorchTeacher("own_teachers:Pixels", weights=tmp_path / "w.safetensors")
    assert loaded.identity()["weights_sha256"] == source.identity()["weights_sha256"]
    with pytest.raises(TeacherError, match="does not fit"):
        TorchTeacher("own_teachers:Words", weights=tmp_path / "w.safetensors")


@pytest.mark.parametrize("target", ["own_teachers:Pixels", "own_teachers:colours"])
def test_another_forward_is_another_teacher_with_or_without_weights(tmp_path, target):
    first, again = (TorchTeacher(target, img_size=None).identity() for _ in range(2))
    (tmp_path / "own_teachers.py").write_text(SOURCE.replace("images.flatten(1))[", "2 * images.flatten(1))["))
    sys.modules.pop("own_teachers")
    importlib.invalidate_caches()
    changed = TorchTeacher(target).identity()
    assert first == again and ("weights_sha256" in first) is (target == "own_teachers:Pixels")
    assert {name for name in first if first[name] != changed[name]} == {"source_sha256"}


def test_a_module_without_a_file_is_refused(monkeypatch):
    module = types.ModuleType("from_nowhere")
    module.colours = lambda: lambda images: images.mean(dim=(2, 3))
    monkeypatch.setitem(sys.modules, "from_nowhere", module)
    with pytest.raises(TeacherError, match="has no file to tell it by"):
        TorchTeacher("from_nowhere:colours", img_size=8)


def test_the_working_directory_is_searched(tmp_path, monkeypatch):
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "teachers_of_here.py").write_text(SOURCE)
    monkeypatch.chdir(folder)
    monkeypatch.setattr("sys.path", list(sys.path))
    assert TorchTeacher("teachers_of_here:ready").name == "ready"


@pytest.mark.parametrize(
    ("target", "match"),
    [
        ("own_teachers", "not package.module:attribute"),
        ("own_teachers:absent", "absent"),
        ("no_such_module:x", "no_such_module"),
        ("own_teachers:broken", "int64"),
        ("own_teachers:raising", "no such luck"),
    ],
)
def test_refusals(target, match):
    with pytest.raises(TeacherError, match=match):
        TorchTeacher(target, img_size=8)
