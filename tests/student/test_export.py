"""A student on disk and back: the same outputs from plain files, and clear refusals."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from featurecache.errors import CorruptCacheError, FeatureCacheError, UsageError
from featurecache.inputs import ImageInput, TextInput
from featurecache.teachers.random_projection import byte_tokenizer_json
from student.export import load_student, save_student
from student.models import Student, build_backbone

TEXT = TextInput(byte_tokenizer_json(), max_length=40)
IMAGE = ImageInput(size=32, mean=(0.4, 0.5, 0.6), interpolation="bilinear")
FACTS = {"digest": "abc", "class_names": ["größer", "kleiner"], "classes": [1, 0]}


def make_student(kind):
    torch.manual_seed(0)
    backbone = build_backbone("bert:1x64", TEXT) if kind == "text" else build_backbone("test_efficientnet", IMAGE)
    student = Student(backbone, {"logits": 3, "embedding": 6}, shared={"labels": "logits"})
    return student.train()


def outputs(student):
    if student.backbone.input.modality == "text":
        items = [
            student.backbone.input.prepare(text) for text in ("one text", "and another, which is too long to keep")
        ]
    else:
        rng = np.random.default_rng(0)
        items = [student.backbone.input.prepare(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)) for _ in range(2)]
    with torch.inference_mode():
        return student(student.backbone.input.collate(items))


@pytest.mark.parametrize("kind", ["text", "image"])
def test_the_same_student_comes_back(kind, tmp_path):
    student = make_student(kind)
    save_student(student, tmp_path / "student", FACTS)
    loaded, facts = load_student(tmp_path / "student")
    expected, found = outputs(student.eval()), outputs(loaded)
    assert list(found) == ["features", "logits", "embedding", "labels"]
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert {name: facts[name] for name in FACTS} == FACTS
    assert not loaded.training and loaded.widths == student.widths and loaded.shared == student.shared
    assert loaded.backbone.name == student.backbone.name
    assert loaded.backbone.input.to_json() == student.backbone.input.to_json()


def test_the_folder_holds_weights_json_and_a_tokenizer_only(tmp_path):
    student = make_student("text")
    save_student(student, tmp_path, FACTS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["student.json", "student.safetensors", "tokenizer.json"]
    assert load_file(tmp_path / "student.safetensors").keys() == student.state_dict().keys()
    assert json.loads((tmp_path / "student.json").read_text())["heads"] == {"logits": 3, "embedding": 6}
    assert (tmp_path / "tokenizer.json").read_text() == TEXT.tokenizer_json


def test_no_student_is_a_request_that_cannot_be_served(tmp_path):
    with pytest.raises(UsageError, match="there is no trained student"):
        load_student(tmp_path)


def damage(folder, how):
    file = folder / "student.json"
    value = json.loads(file.read_text())
    if how == "weights":
        (folder / "student.safetensors").unlink()
    elif how == "half":
        content = (folder / "student.safetensors").read_bytes()
        (folder / "student.safetensors").write_bytes(content[: len(content) // 2])
    elif how == "other weights":
        save_student(make_student("image"), folder / "other", {})
        (folder / "other" / "student.safetensors").replace(folder / "student.safetensors")
    elif how == "tokenizer":
        (folder / "tokenizer.json").unlink()
    elif how == "json":
        file.write_text(file.read_text()[:50])
    elif how == "list":
        file.write_text("[]")
    else:
        file.write_text(json.dumps(value | {"heads": []}))


@pytest.mark.parametrize("how", ["weights", "half", "other weights", "tokenizer", "json", "list", "heads"])
def test_a_damaged_student_is_refused(tmp_path, how):
    save_student(make_student("text"), tmp_path, FACTS)
    damage(tmp_path, how)
    with pytest.raises(CorruptCacheError):
        load_student(tmp_path)


def test_another_tokenizer_is_refused(tmp_path):
    save_student(make_student("text"), tmp_path, FACTS)
    tokenizer = json.loads(byte_tokenizer_json())
    tokenizer["added_tokens"].append({**tokenizer["added_tokens"][0], "id": 257, "content": "[NEW]"})
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(FeatureCacheError, match="made for a vocabulary of 257, this tokenizer has 258"):
        load_student(tmp_path)
