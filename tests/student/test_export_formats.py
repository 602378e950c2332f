"""What other libraries make of an exported student, loaded as anybody loads it, beside the student's own outputs."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file

from featurecache.errors import FeatureCacheError, UsageError
from featurecache.inputs import ImageInput, TextInput
from featurecache.teachers.random_projection import byte_tokenizer_json
from student.export import EXPORTS, load_student, save_student
from student.models import Student, build_backbone

IMAGE = ImageInput(size=64, crop_pct=0.9, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25), interpolation="bilinear")
TEXT = TextInput(byte_tokenizer_json(), max_length=24)
TEXTS = ["one text", "größer — 東京", "a text that is longer than the student reads, so that it is cut somewhere", "x"]
FACTS = {"digest": "ab" * 32, "class_names": ["<b>", "`x`", "größer"], "classes": None}
NAMES = {"labels": FACTS["class_names"]}
MODELS = ["test_resnet", "test_vit", "mobilenetv3_small_050"]
PHOTO = np.random.default_rng(0).integers(0, 256, (9, 13, 3), dtype=np.uint8)


def make_student(folder, name, heads=None, input=None):
    """A student with statistics of its own in batch norms, as it comes back from disk."""
    torch.manual_seed(0)
    input = input or (TEXT if name.startswith("bert") else IMAGE)
    student = Student(build_backbone(name, input), {"labels": 3, "embedding": 6} if heads is None else heads)
    for value in student.buffers():
        if value.dtype == torch.float32 and value.ndim == 1:
            value.uniform_(0.5, 1.5)
    save_student(student, folder, FACTS)
    return load_student(folder)[0]


def export(student, folder, kind):
    folder.mkdir()
    return EXPORTS.get(kind)(student, folder, facts=FACTS, class_names=NAMES)


def photo():
    return Image.fromarray(PHOTO).resize((130, 90), Image.Resampling.BICUBIC)


def own_outputs(student):
    """Of the photo, or of the texts."""
    network = student.backbone.input
    samples = TEXTS if network.modality == "text" else [np.asarray(photo())]
    with torch.inference_mode():
        return student(network.collate([network.prepare(sample) for sample in samples]))


def close(found, expected):
    assert found.shape == expected.shape
    assert (found - expected).abs().max() < 1e-5


@pytest.mark.parametrize("name", MODELS)
def test_plain_timm_gives_the_same(name, tmp_path):
    student = make_student(tmp_path / "student", name)
    exported = export(student, tmp_path / "timm", "timm")
    assert exported.classifier == "labels" and exported.heads == ("embedding",) and not exported.notes
    assert exported.largest_difference < 1e-5
    model = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    settings = timm.data.resolve_model_data_config(model)
    images = timm.data.create_transform(**settings, is_training=False)(photo())[None]
    with torch.inference_mode():
        features = model.forward_head(model.forward_features(images), pre_logits=True)
        logits = model(images)
    expected = own_outputs(student)
    close(features, expected["features"])
    close(logits, expected["labels"])
    assert expected["labels"].std() > 1e-3
    heads = load_file(tmp_path / "timm/heads.safetensors")
    assert sorted(heads) == ["embedding.bias", "embedding.weight"]
    close(features @ heads["embedding.weight"].T + heads["embedding.bias"], expected["embedding"])
    assert model.pretrained_cfg["label_names"] == FACTS["class_names"] and model.num_classes == 3
    assert (settings["mean"], settings["std"]) == (list(IMAGE.mean), list(IMAGE.std))
    assert list(settings["input_size"]) == [3, 64, 64] and settings["interpolation"] == "bilinear"


def test_the_folder_claims_neither_tag_nor_licence_of_other_weights(tmp_path):
    export(make_student(tmp_path / "student", "test_vit"), tmp_path / "timm", "timm")
    config = json.loads((tmp_path / "timm/config.json").read_text())
    assert not {"tag", "license", "hf_hub_id", "url", "origin_url"} & config["pretrained_cfg"].keys()
    assert config["architecture"] == "test_vit" and config["model_args"] == {"img_size": 64}
    assert timm.get_pretrained_cfg("test_vit").license  # or nothing is shown by this


@pytest.mark.parametrize(
    ("heads", "classifier", "rest"),
    [
        ({"logits": 5}, "logits", ()),
        ({"logits": 5, "labels": 3}, "labels", ("logits",)),
        ({"a/embedding": 4}, None, ("a/embedding",)),
        ({}, None, ()),
    ],
)
def test_which_head_is_timms_classifier(heads, classifier, rest, tmp_path):
    student = make_student(tmp_path / "student", "test_resnet", heads)
    exported = export(student, tmp_path / "timm", "timm")
    assert (exported.classifier, exported.heads) == (classifier, rest)
    assert (tmp_path / "timm/heads.safetensors").exists() == bool(rest)
    model = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    assert model.num_classes == (heads[classifier] if classifier else 0)
    with torch.inference_mode():
        found = model(IMAGE.normalise(torch.from_numpy(IMAGE.prepare(np.asarray(photo())))[None]))
    close(found, own_outputs(student)[classifier or "features"])


def test_a_classifier_that_is_no_linear_layer_stays_beside_the_model(tmp_path, monkeypatch):
    student = make_student(tmp_path / "student", "test_resnet")
    monkeypatch.setattr(timm.models.ResNet, "get_classifier", lambda self: torch.nn.Conv2d(1, 1, 1))
    exported = export(student, tmp_path / "timm", "timm")
    assert exported.classifier is None and exported.heads == ("labels", "embedding")
    assert exported.notes == ("timm's `test_resnet` cannot hold the head `labels` as its classifier",)
    assert json.loads((tmp_path / "timm/config.json").read_text())["num_classes"] == 0


def test_plain_transformers_gives_the_same(tmp_path):
    student = make_student(tmp_path / "student", "bert:2x64")
    exported = export(student, tmp_path / "hf", "transformers")
    assert exported.heads == ("labels", "embedding") and exported.largest_difference < 1e-5
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    model = transformers.AutoModel.from_pretrained(tmp_path / "hf").eval()
    assert tokenizer.model_max_length == 24
    batch = tokenizer(TEXTS, padding=True, truncation=True, return_tensors="pt")
    own = TEXT.collate([TEXT.prepare(text) for text in TEXTS])
    assert torch.equal(batch["input_ids"], own["ids"]) and torch.equal(batch["attention_mask"].bool(), own["mask"])
    with torch.inference_mode():
        hidden = model(**batch).last_hidden_state
    features = torch.stack([row[: int(mask.sum())].mean(0) for row, mask in zip(hidden, own["mask"], strict=True)])
    expected = own_outputs(student)
    close(features, expected["features"])
    heads = load_file(tmp_path / "hf/heads.safetensors")
    for name in ("labels", "embedding"):
        close(features @ heads[f"{name}.weight"].T + heads[f"{name}.bias"], expected[name])


def test_what_sentence_transformers_reads(tmp_path):
    export(make_student(tmp_path / "student", "bert:1x64"), tmp_path / "hf", "transformers")
    modules = json.loads((tmp_path / "hf/modules.json").read_text())
    assert [(module["path"], module["type"].rpartition(".")[2]) for module in modules] == [
        ("", "Transformer"),
        ("1_Pooling", "Pooling"),
    ]
    pooling = json.loads((tmp_path / "hf/1_Pooling/config.json").read_text())
    assert pooling["word_embedding_dimension"] == 64
    assert [name for name, value in pooling.items() if value is True] == ["pooling_mode_mean_tokens"]
    assert json.loads((tmp_path / "hf/sentence_bert_config.json").read_text())["max_seq_length"] == 24


def test_an_exported_student_can_be_a_teacher(tmp_path):
    from featurecache.teachers import load_teacher

    student = make_student(tmp_path / "student", "bert:1x64")
    export(student, tmp_path / "hf", "transformers")
    teacher = load_teacher(str(tmp_path / "hf"), modality="text")
    assert teacher.input.max_length == 24
    batch = teacher.input.collate([teacher.input.prepare(text) for text in TEXTS])
    close(teacher(batch)["embedding"], own_outputs(student)["features"])
    student = make_student(tmp_path / "student2", "test_resnet")
    export(student, tmp_path / "timm", "timm")
    teacher = load_teacher(str(tmp_path / "timm"))
    assert teacher.input == IMAGE and teacher.outputs[1].classes == tuple(FACTS["class_names"])
    outputs = teacher(teacher.input.collate([teacher.input.prepare(np.asarray(photo()))]))
    close(outputs["embedding"], own_outputs(student)["features"])
    close(outputs["logits"], own_outputs(student)["labels"])


def other_tokenizer(how):
    """A tokenizer.json with a token besides the bytes: what could pad differs."""
    value = json.loads(byte_tokenizer_json())
    if how == "another special token":
        value["added_tokens"][0]["content"] = "<end>"
    else:
        value["added_tokens"] = []
    return json.dumps(value)


@pytest.mark.parametrize(("how", "pad"), [("another special token", "<end>"), ("none", None)])
def test_a_tokenizer_without_a_padding_token_keeps_its_tokens(how, pad, tmp_path):
    student = make_student(tmp_path / "student", "bert:1x64", input=TextInput(other_tokenizer(how), max_length=24))
    exported = export(student, tmp_path / "hf", "transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert tokenizer.pad_token == pad and ("one text at a time" in " ".join(exported.notes)) == (pad is None)
    own = [student.backbone.input.prepare(text) for text in [*TEXTS, "<end> !!"]]
    assert [tokenizer(text, truncation=True)["input_ids"] for text in [*TEXTS, "<end> !!"]] == own


@pytest.mark.parametrize("name", ["test_vit", "bert:1x64"])
def test_onnxruntime_gives_the_same(name, tmp_path):
    import onnxruntime

    student = make_student(tmp_path / "student", name, {"labels": 3, "a/embedding": 6, "embedding": 2})
    exported = export(student, tmp_path / "onnx", "onnx")
    assert exported.largest_difference < 1e-5
    session = onnxruntime.InferenceSession(tmp_path / "onnx/model.onnx", providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    assert names == ["features", "labels", "a/embedding", "embedding"]
    network, expected = student.backbone.input, own_outputs(student)
    samples = TEXTS if name.startswith("bert") else [np.asarray(photo())]
    batch = network.collate([network.prepare(sample) for sample in samples])
    arrays = session.run(names, {key: value.numpy() for key, value in batch.items()})
    for key, array in zip(names, arrays, strict=True):
        close(torch.from_numpy(array), expected[key])
    facts = session.get_modelmeta().custom_metadata_map
    assert json.loads(facts["class_names"]) == NAMES and json.loads(facts["digest"]) == FACTS["digest"]
    assert json.loads(facts["input"]) == network.to_json()
    content = (tmp_path / "onnx/model.onnx").read_bytes()
    assert str(Path(timm.__file__).parents[1]).encode() not in content and b"stack_trace" not in content


def test_missing_packages_are_named(tmp_path, monkeypatch):
    student = make_student(tmp_path / "student", "test_resnet")
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else real(name))
    with pytest.raises(UsageError, match=r"needs onnxscript, .*\(hint: pip install 'featurecache\[onnx\]'\)"):
        export(student, tmp_path / "onnx", "onnx")


def test_a_library_that_gives_something_else_is_an_error(tmp_path, monkeypatch):
    student = make_student(tmp_path / "student", "test_resnet")
    plain = timm.create_model

    def other(name, **options):
        model = plain(name, **options)
        if name.startswith("local-dir:"):
            model.fc.bias.data[1] += 0.01
        return model

    monkeypatch.setattr(timm, "create_model", other)
    with pytest.raises(FeatureCacheError, match="gives another 'labels' than the trained one: it is 0.01 off"):
        export(student, tmp_path / "timm", "timm")


@pytest.mark.parametrize(
    ("kind", "name", "match"),
    [("timm", "bert:1x64", "timm has image models only"), ("transformers", "test_resnet", "it is a timm model")],
)
def test_a_kind_that_is_not_for_a_student(kind, name, match, tmp_path):
    student = make_student(tmp_path / "student", name)
    with pytest.raises(UsageError, match=match):
        export(student, tmp_path / "out", kind)
