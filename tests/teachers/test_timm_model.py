"""timm teachers against timm itself: outputs, preprocessing, weights from three places, refusals."""

import json
import shutil

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.data import create_transform, resolve_model_data_config
from timm.models import save_for_hf

from featurecache.errors import TeacherError
from featurecache.inputs import ImageInput
from featurecache.teachers.timm_model import TimmTeacher
from tests.contracts.teacher_contract import TeacherContract
from tests.hub_stand_in import COMMIT, write_hub_cache


def write_weights(path, model, *, seed=0, **kwargs):
    """Random weights of a timm model as a safetensors file, with a classifier that is not zero."""
    torch.manual_seed(seed)
    network = timm.create_model(model, **kwargs)
    for module in network.modules():
        if isinstance(module, torch.nn.Linear):
            module.reset_parameters()
    save_file(network.state_dict(), path)
    return path


class TestViT(TeacherContract):
    def make_teacher(self, tmp_path, seed=0):
        return TimmTeacher("test_vit", weights=write_weights(tmp_path / "vit.safetensors", "test_vit", seed=seed))


class TestConvNet(TeacherContract):
    def make_teacher(self, tmp_path, seed=0):
        file = write_weights(tmp_path / "net.safetensors", "test_efficientnet", seed=seed, num_classes=0)
        return TimmTeacher("test_efficientnet", weights=file, model_kwargs={"num_classes": 0})


@pytest.mark.parametrize(
    "model",
    [
        "test_vit",
        "test_convnext",
        "test_nfnet",
        "vit_tiny_patch16_224",
        "resnet10t",
        "mobilenetv3_small_050",
        "convnext_atto",
        "resnetv2_18",  # its classifier is a convolution
        "deit_tiny_distilled_patch16_224",  # it has two classifiers
        "volo_d1_224",  # its classifier is not all of its logits
    ],
)
def test_outputs_are_those_of_the_model(tmp_path, model):
    file = write_weights(tmp_path / "w.safetensors", model)
    teacher = TimmTeacher(model, weights=file)
    network = timm.create_model(model).eval()
    network.load_state_dict(load_file(file))
    images = torch.randint(0, 256, (2, 3, teacher.input.size, teacher.input.size), dtype=torch.uint8)
    outputs = teacher({"images": images})
    with torch.inference_mode():
        expected = network(teacher.input.normalise(images))
    torch.testing.assert_close(outputs["logits"], expected)
    assert outputs["embedding"].shape == (2, network.head_hidden_size)
    if isinstance(network.get_classifier(), torch.nn.Linear) and "volo" not in model:
        torch.testing.assert_close(network.get_classifier()(outputs["embedding"].clone()), expected)


def smooth_image(height, width):
    noise = np.random.default_rng(0).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("shape", [(300, 400), (401, 300), (64, 57), (224, 224), (33, 500)])
@pytest.mark.parametrize("crop_pct", [0.875, 0.9, 0.95, 1.0])
@pytest.mark.parametrize("mode", ["center", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_preprocessing_is_timms(shape, crop_pct, mode, interpolation):
    image = smooth_image(*shape)
    settings = {"crop_pct": crop_pct, "crop_mode": mode, "interpolation": interpolation}
    expected = create_transform(224, mean=(0.5,) * 3, std=(0.5,) * 3, **settings)(image)
    ours = ImageInput(224, mean=(0.5,) * 3, std=(0.5,) * 3, **settings)
    actual = ours.normalise(torch.from_numpy(ours.prepare(np.asarray(image)))[None])[0]
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("model", ["test_vit", "test_convnext3", "resnet10t"])
def test_embeddings_of_view_0_are_timms(tmp_path, model):
    file = write_weights(tmp_path / "w.safetensors", model)
    teacher = TimmTeacher(model, weights=file)
    network = timm.create_model(model).eval()
    network.load_state_dict(load_file(file))
    transform = create_transform(**resolve_model_data_config(network), is_training=False)
    for shape in [(300, 400), (401, 300), (64, 57)]:
        image = smooth_image(*shape)
        ours = teacher(teacher.input.collate([teacher.input.prepare(np.asarray(image))]))["logits"]
        with torch.inference_mode():
            theirs = network(transform(image)[None])
        assert torch.cosine_similarity(ours, theirs).item() >= 0.9999


def test_border_and_oversized_crops_are_refused(tmp_path):
    folder = tmp_path / "folder"
    save_for_hf(timm.create_model("test_resnet", num_classes=2), folder, safe_serialization=True)
    config = json.loads((folder / "config.json").read_text())
    for wrong in ({"crop_mode": "border"}, {"crop_pct": 1.15}, {"input_size": [3, 160, 128]}):
        changed = {**config, "pretrained_cfg": {**config["pretrained_cfg"], **wrong}}
        (folder / "config.json").write_text(json.dumps(changed))
        with pytest.raises(TeacherError, match="not supported"):
            TimmTeacher(str(folder))


def test_hub_folder_and_file_are_the_same_teacher(tmp_path, hub_cache):
    cached = write_hub_cache(hub_cache, "test_vit")
    from_hub = TimmTeacher("test_vit")
    pinned = TimmTeacher(f"test_vit@{COMMIT}")
    from_file = TimmTeacher("test_vit", weights=shutil.copy(cached, tmp_path / "w.safetensors"))
    network = timm.create_model("test_vit")
    network.load_state_dict(load_file(cached))
    save_for_hf(network, tmp_path / "folder", safe_serialization=True)
    from_folder = TimmTeacher(str(tmp_path / "folder"))
    assert from_hub.name == "test_vit.r160_in1k"
    assert from_hub.revision == pinned.revision == COMMIT
    assert from_file.revision is None
    for other in (pinned, from_file, from_folder):
        assert other.identity() == from_hub.identity()
        assert other.input == from_hub.input
        assert other.outputs == from_hub.outputs
    assert from_hub.outputs[1].classes[:2] == ("n01440764", "n01443537")


def test_class_names_of_a_folder(tmp_path):
    network = timm.create_model("test_resnet", num_classes=3)
    save_for_hf(network, tmp_path / "m", model_config={"label_names": ["a", "b", "c"]}, safe_serialization=True)
    embedding, logits = TimmTeacher(str(tmp_path / "m")).outputs
    assert embedding.shape == (96,)
    assert (logits.shape, logits.classes) == ((3,), ("a", "b", "c"))


def test_another_image_size(tmp_path):
    file = write_weights(tmp_path / "w.safetensors", "vit_tiny_patch16_224")
    teacher = TimmTeacher("vit_tiny_patch16_224", weights=file, img_size=96, crop_pct=1.0)
    images = torch.randint(0, 256, (1, 3, 96, 96), dtype=torch.uint8)
    network = timm.create_model(
        "vit_tiny_patch16_224",
        pretrained=True,
        img_size=96,
        pretrained_cfg_overlay={"file": file, "custom_load": False},
    ).eval()
    assert (teacher.input.size, teacher.input.crop_pct) == (96, 1.0)
    with torch.inference_mode():
        expected = network(teacher.input.normalise(images))
    torch.testing.assert_close(teacher({"images": images})["logits"], expected)
    native = TimmTeacher("vit_tiny_patch16_224", weights=file).identity()
    assert teacher.identity()["weights_sha256"] == native["weights_sha256"]
    assert teacher.identity() != native


def test_a_size_that_the_model_cannot_take(tmp_path):
    file = write_weights(tmp_path / "w.safetensors", "mixer_s32_224")
    with pytest.raises(TeacherError, match="cannot run on 96-pixel images"):
        TimmTeacher("mixer_s32_224", weights=file, img_size=96)


def test_weights_that_do_not_fit(tmp_path):
    file = write_weights(tmp_path / "w.safetensors", "test_vit")
    with pytest.raises(TeacherError, match=r"missing \(reg_token"):
        TimmTeacher("test_vit2", weights=file)
    with pytest.raises(TeacherError, match=r"another shape \(head.weight, head.bias"):
        TimmTeacher("test_vit", weights=file, model_kwargs={"num_classes": 7})
    large = write_weights(tmp_path / "large.safetensors", "test_vit", img_size=320)
    with pytest.raises(TeacherError, match=r"1 of another shape \(pos_embed\)"):
        TimmTeacher("test_vit", weights=large)


def test_only_safetensors(tmp_path):
    pickled = tmp_path / "w.pth"
    torch.save({}, pickled)
    with pytest.raises(TeacherError, match="not a safetensors file"):
        TimmTeacher("test_vit", weights=pickled)
    (tmp_path / "torn.safetensors").write_bytes(b"\x08\0\0")
    with pytest.raises(TeacherError, match="not a whole safetensors file"):
        TimmTeacher("test_vit", weights=tmp_path / "torn.safetensors")
    with pytest.raises(TeacherError, match="no weights file"):
        TimmTeacher("test_vit", weights=tmp_path / "absent.safetensors")
    save_for_hf(timm.create_model("test_vit"), tmp_path / "folder", safe_serialization=False)
    with pytest.raises(TeacherError, match=r"no model\.safetensors"):
        TimmTeacher(str(tmp_path / "folder"))


@pytest.mark.parametrize(
    ("model", "kwargs", "match"),
    [
        ("test_vit@main", {}, "no commit"),
        ("test_vit.never_trained", {}, "r160_in1k"),
        ("no_such_model", {}, "no model"),
        ("test_vit", {"model_kwargs": {"in_chans": 1}}, "RGB"),
        ("test_vit", {"model_kwargs": {"widht": 3}}, "widht"),
        ("gcvit_tiny", {}, "no weights on the hub"),
    ],
)
def test_refusals(model, kwargs, match, hub_cache):
    write_hub_cache(hub_cache, "test_vit")
    with pytest.raises(TeacherError, match=match):
        TimmTeacher(model, **kwargs)
