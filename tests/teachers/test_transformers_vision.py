"""Vision encoders against transformers itself, with random weights and real processors."""

import json

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from featurecache.errors import TeacherError
from featurecache.teachers.transformers_vision import TransformersVision
from tests.contracts.teacher_contract import TeacherContract

VIT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 32,
    "patch_size": 8,
}
RESNET = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
SQUASHED = {"size": {"height": 32, "width": 32}}


def write_model(folder, model="ViTModel", config=VIT, processor=SQUASHED, kind="ViTImageProcessor", *, seed=0, **extra):
    torch.manual_seed(seed)
    config_class = getattr(transformers, model).config_class
    network = getattr(transformers, model)(config_class(**config, **extra))
    network.save_pretrained(folder)
    getattr(transformers, kind)(**processor).save_pretrained(folder)
    return network.eval()


class TestViT(TeacherContract):
    def make_teacher(self, tmp_path, seed=0):
        write_model(tmp_path / f"vit{seed}", seed=seed)
        return TransformersVision(tmp_path / f"vit{seed}")


class TestResNetClassifier(TeacherContract):
    def make_teacher(self, tmp_path, seed=0):
        labels = {"id2label": {0: "cat", 1: "dog", 2: "owl"}, "label2id": {"cat": 0, "dog": 1, "owl": 2}}
        folder = tmp_path / f"resnet{seed}"
        write_model(folder, "ResNetForImageClassification", RESNET, seed=seed, **labels)
        return TransformersVision(folder)

    def test_logits_are_the_models(self, teacher, items, tmp_path):
        network = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "resnet0").eval()
        batch = teacher.input.collate(items)
        with torch.inference_mode():
            expected = network(teacher.input.normalise(batch["images"])).logits
        torch.testing.assert_close(teacher(batch)["logits"], expected)
        assert teacher.outputs[1].classes == ("cat", "dog", "owl")


@pytest.mark.parametrize(
    ("model", "config", "pool", "expected"),
    [
        ("ViTModel", VIT, None, "pooler"),
        ("ViTForImageClassification", VIT, None, "cls"),
        ("ViTForMaskedImageModeling", VIT, None, "cls"),
        ("Dinov2Model", {k: v for k, v in VIT.items() if k != "intermediate_size"}, None, "pooler"),
        ("ResNetModel", RESNET, None, "pooler"),
        ("ViTModel", VIT, "mean", "mean"),
        ("ResNetModel", RESNET, "mean", "mean"),
    ],
)
def test_pooling(tmp_path, model, config, pool, expected):
    write_model(tmp_path, model, config)
    teacher = TransformersVision(tmp_path, pool=pool)
    assert teacher.identity()["outputs"] == {"embedding": {"pool": expected}}
    network = transformers.AutoModel.from_pretrained(tmp_path).eval()
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    with torch.inference_mode():
        output = network(teacher.input.normalise(images))
    hidden = output.last_hidden_state
    means = hidden.mean((2, 3)) if hidden.ndim == 4 else hidden.mean(1)
    embeddings = {"pooler": lambda: output.pooler_output.flatten(1), "cls": lambda: hidden[:, 0], "mean": lambda: means}
    torch.testing.assert_close(teacher({"images": images})["embedding"], embeddings[expected]())


@pytest.mark.parametrize("pool", ["pooler", "cls", "max"])
def test_a_pooling_that_is_not_there(tmp_path, pool):
    model, config = ("ResNetModel", RESNET) if pool == "cls" else ("ViTForImageClassification", VIT)
    write_model(tmp_path, model, config)
    with pytest.raises(TeacherError, match="pool"):
        TransformersVision(tmp_path, pool=pool)


@pytest.mark.parametrize("shape", [(300, 400), (401, 300), (90, 120)])
@pytest.mark.parametrize(
    ("kind", "processor", "size", "crop_mode"),
    [
        ("ViTImageProcessor", SQUASHED, 32, "squash"),
        ("ViTImageProcessor", {**SQUASHED, "resample": 3, "do_normalize": False}, 32, "squash"),
        ("DeiTImageProcessor", {"size": {"height": 40, "width": 40}, "crop_size": 32}, 32, "squash"),
        ("BitImageProcessor", {"size": {"shortest_edge": 235}, "crop_size": 224}, 224, "center"),
        ("CLIPImageProcessor", {"size": {"shortest_edge": 32}, "crop_size": 32}, 32, "center"),
        ("ConvNextImageProcessor", {"size": {"shortest_edge": 32}, "crop_pct": 0.875}, 32, "center"),
        ("ConvNextImageProcessor", {"size": {"shortest_edge": 384}}, 384, "squash"),
    ],
)
def test_preprocessing_is_the_processors(tmp_path, kind, processor, size, crop_mode, shape):
    write_model(tmp_path, "ResNetModel", RESNET, processor, kind)
    ours = TransformersVision(tmp_path).input
    noise = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize(shape[::-1], Image.Resampling.BICUBIC)
    theirs = transformers.AutoImageProcessor.from_pretrained(tmp_path)(image, return_tensors="pt")["pixel_values"][0]
    actual = ours.normalise(torch.from_numpy(ours.prepare(np.asarray(image)))[None])[0]
    assert (ours.size, ours.crop_mode) == (size, crop_mode)
    assert torch.cosine_similarity(actual.flatten(), theirs.flatten(), dim=0) > 0.995


@pytest.mark.parametrize(
    ("kind", "processor"),
    [
        ("ViTImageProcessor", {"size": {"height": 32, "width": 48}}),
        ("ViTImageProcessor", {"size": {"shortest_edge": 32}}),
        ("ViTImageProcessor", {**SQUASHED, "resample": 1}),
        ("ViTImageProcessor", {**SQUASHED, "do_rescale": False}),
        ("LevitImageProcessor", {"size": {"shortest_edge": 32}, "crop_size": 32}),
    ],
)
def test_other_preprocessing_is_refused(tmp_path, kind, processor):
    write_model(tmp_path, "ResNetModel", RESNET, processor, kind)
    with pytest.raises(TeacherError, match="not supported"):
        TransformersVision(tmp_path)


def test_without_a_processor(tmp_path):
    write_model(tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(TeacherError, match="preprocessor_config"):
        TransformersVision(tmp_path)


def test_another_size(tmp_path):
    network = write_model(tmp_path)
    teacher = TransformersVision(tmp_path, img_size=48, crop_pct=0.9)
    assert (teacher.input.size, teacher.input.crop_pct) == (48, 0.9)
    images = torch.randint(0, 256, (1, 3, 48, 48), dtype=torch.uint8)
    with torch.inference_mode():
        expected = network(teacher.input.normalise(images), interpolate_pos_encoding=True).pooler_output
    torch.testing.assert_close(teacher({"images": images})["embedding"], expected)


def test_two_towers_are_refused(tmp_path):
    write_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(transformers.CLIPConfig().to_dict(), default=str))
    with pytest.raises(TeacherError, match="a text and an image tower"):
        TransformersVision(tmp_path)
