"""Task teachers: they learn, and the folder they leave is one that timm, transformers and `--teacher` read."""

import hashlib
import json

import numpy as np
import pytest
import timm
import torch
import transformers
from safetensors.torch import save_file

from featurecache.errors import TeacherError, UsageError
from featurecache.inputs import ImageInput
from featurecache.sources import decode, open_data
from featurecache.teachers import load_teacher
from featurecache.teachers.random_projection import byte_tokenizer_json
from pipelines import extract_cache, finish, fit_teacher
from pipelines.build import open_rows
from pipelines.classifiers import TimmClassifier
from pipelines.events import Message
from pipelines.recipe import TrainRecipe
from student import trainer

HERE = {"workers": 0, "device": "cpu"}


@pytest.fixture(scope="module")
def image_teacher(tmp_path_factory):
    out = tmp_path_factory.mktemp("fitted") / "teacher"
    given = {"mode": "fr", "img_size": 32, "epochs": 8.0, "batch_size": 32, "learning_rate": 5e-3}
    return out, finish(fit_teacher(model="timm:test_efficientnet", data="synthetic:300", out=out, **given, **HERE))


def decoded(data, split, count=20):
    source = open_data(data)[split]
    return [decode(source[index], source.modality) for index in range(count)], source.labels[:count]


def test_an_image_model_learns_its_task(image_teacher):
    out, result = image_teacher
    assert result["classes"] == 4 and result["validation_accuracy"] > 0.7
    assert result["rows"]["training"] + result["rows"]["validation"] == 300
    assert sorted(path.name for path in out.iterdir()) == ["config.json", "model.safetensors"]
    teacher = load_teacher(str(out))
    images, labels = decoded("synthetic:300", "test")
    batch = teacher.input.collate([teacher.input.prepare(image) for image in images])
    assert (teacher(batch)["logits"].argmax(1).numpy() == labels).mean() > 0.6


def test_plain_timm_gives_the_same_logits(image_teacher):
    out, _ = image_teacher
    teacher = load_teacher(str(out))
    assert isinstance(teacher.input, ImageInput) and teacher.input.size == 32
    assert teacher.outputs[1].classes == tuple(f"class-{label}" for label in range(4))
    network = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    assert network.pretrained_cfg["label_names"] == [f"class-{label}" for label in range(4)]
    images, _ = decoded("synthetic:300", "test", 6)
    batch = teacher.input.collate([teacher.input.prepare(image) for image in images])
    with torch.inference_mode():
        expected = network(teacher.input.normalise(batch["images"]))
    torch.testing.assert_close(teacher(batch)["logits"], expected)


def test_its_classes_are_those_of_the_data(image_teacher, tmp_path):
    out, _ = image_teacher
    finish(extract_cache(teacher=str(out), data="synthetic:60", out=tmp_path / "cache", **HERE))
    rows = open_rows(TrainRecipe(cache=str(tmp_path / "cache")))
    assert rows.classes.tolist() == [0, 1, 2, 3] and rows.objective == "kl,align-uniform,ce"


def test_a_transformer_is_resized(tmp_path):
    given = {"mode": "fr", "img_size": 64, "epochs": 1.0}
    finish(fit_teacher(model="timm:test_vit", data="synthetic:40", out=tmp_path / "teacher", **given, **HERE))
    teacher = load_teacher(str(tmp_path / "teacher"))
    assert teacher.input.size == 64
    images, _ = decoded("synthetic:40", "test", 2)
    assert teacher(teacher.input.collate([teacher.input.prepare(i) for i in images]))["logits"].shape == (2, 4)


def test_fine_tuning_begins_with_the_weights_given(tmp_path):
    torch.manual_seed(3)
    donor = timm.create_model("test_efficientnet")
    save_file(donor.state_dict(), tmp_path / "donor.safetensors")
    given = {"img_size": 32, "epochs": 0.1, "learning_rate": 1e-9, "weights": str(tmp_path / "donor.safetensors")}
    finish(fit_teacher(model="timm:test_efficientnet", data="synthetic:40", out=tmp_path / "teacher", **given, **HERE))
    network = timm.create_model(f"local-dir:{tmp_path / 'teacher'}", pretrained=True)
    torch.testing.assert_close(network.conv_stem.weight, donor.conv_stem.weight, rtol=0, atol=1e-6)
    assert network.num_classes == 4


@pytest.mark.parametrize("classes", [1000, 7, 0])
def test_weights_may_have_any_classifier(tmp_path, classes):
    donor = timm.create_model("test_efficientnet", num_classes=classes)
    save_file(donor.state_dict(), tmp_path / "donor.safetensors")
    given = {"pretrained": True, "weights": str(tmp_path / "donor.safetensors")}
    fitted = TimmClassifier("test_efficientnet", ("a", "b"), **given)
    torch.testing.assert_close(fitted.network.conv_stem.weight, donor.conv_stem.weight)
    assert fitted({"images": torch.zeros(2, 3, 32, 32, dtype=torch.uint8)})["labels"].shape == (2, 2)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"nothing.to.do": torch.zeros(3)}, r"missing \(conv_stem.weight.*1 unexpected \(nothing.to.do\)"),
        (timm.create_model("test_resnet").state_dict(), "missing .conv_stem"),
        ({**timm.create_model("test_efficientnet").state_dict(), "conv_stem.weight": torch.zeros(1)}, "another shape"),
    ],
)
def test_weights_of_another_model_are_refused(tmp_path, tensors, message):
    save_file(tensors, tmp_path / "other.safetensors")
    given = {"model": "timm:test_efficientnet", "weights": str(tmp_path / "other.safetensors")}
    with pytest.raises(TeacherError, match=message):
        finish(fit_teacher(data="synthetic:40", out=tmp_path / "teacher", **given, **HERE))
    assert not (tmp_path / "teacher").exists()


def test_the_folder_stands_whole_or_not_at_all(tmp_path, monkeypatch):
    given = {"model": "timm:test_efficientnet", "data": "synthetic:40", "mode": "fr", "img_size": 32, "epochs": 0.1}
    real = TimmClassifier.save

    def save(self, out):
        real(self, out)
        (out / "half").touch()
        raise OSError("no space left")

    monkeypatch.setattr(TimmClassifier, "save", save)
    with pytest.raises(OSError, match="no space left"):
        finish(fit_teacher(out=tmp_path / "teacher", **given, **HERE))
    assert [path.name for path in tmp_path.iterdir()] == ["teacher.partial"]
    monkeypatch.setattr(TimmClassifier, "save", real)
    (tmp_path / "teacher").mkdir()  # an empty one may stand there
    finish(fit_teacher(out=tmp_path / "teacher", **given, **HERE))
    assert [path.name for path in tmp_path.iterdir()] == ["teacher"]
    assert sorted(path.name for path in (tmp_path / "teacher").iterdir()) == ["config.json", "model.safetensors"]


def test_no_other_labels_are_seen_than_so_many(tmp_path, monkeypatch):
    seen, real = {}, trainer.train

    def watched(network, objective, training, settings, *, validation):
        for name, data in (("training", training), ("validation", validation)):
            rows = [(data.source.keys[sample], label) for sample, label in zip(data.samples, data.labels, strict=True)]
            seen[name] = dict(rows)
        return real(network, objective, training, settings, validation=validation)

    monkeypatch.setattr(trainer, "train", watched)
    given = {"mode": "fr", "img_size": 32, "epochs": 1.0, "batch_size": 8, "labels": 20, "validation": 0.3}
    result = finish(
        fit_teacher(model="timm:test_efficientnet", data="synthetic:60", out=tmp_path / "a", **given, **HERE)
    )
    source = open_data("synthetic:60")["train"]
    labels = dict(zip(source.keys, source.labels.tolist(), strict=True))
    chosen = sorted(source.keys, key=lambda key: unit("labels", key))[:20]
    held_out = {key: labels[key] for key in chosen if unit("validation", key) < 0.3}
    assert 0 < len(held_out) < 20 and seen["validation"] == held_out
    assert seen["training"] == {key: labels[key] for key in chosen if key not in held_out}
    assert result["rows"] == {"training": 20 - len(held_out), "validation": len(held_out)}
    assert result["steps"] == (20 - len(held_out)) // 8
    given["labels"] = 61
    with pytest.raises(UsageError, match="cannot choose 61 labels: 60 usable rows have one"):
        finish(fit_teacher(model="timm:test_efficientnet", data="synthetic:60", out=tmp_path / "b", **given, **HERE))


def unit(word, key):
    return int.from_bytes(hashlib.sha256(f"{word}/{key}".encode()).digest()[:8], "little") / 2**64


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory):
    """A BERT of one layer that was never trained, as transformers saves it, with a byte tokenizer."""
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 128}
    config = transformers.BertConfig(vocab_size=257, max_position_embeddings=128, pad_token_id=256, **sizes)
    transformers.BertModel(config).save_pretrained(folder)
    (folder / "tokenizer.json").write_text(byte_tokenizer_json())
    return folder


@pytest.mark.parametrize("mode", ["ft", "fr"])
def test_a_text_model_learns_its_task_and_plain_transformers_reads_it(bert_folder, tmp_path, mode):
    out = tmp_path / "teacher"
    given = {"mode": mode, "epochs": 16.0, "learning_rate": 3e-3, "max_length": 48}
    result = finish(fit_teacher(model=f"hf:{bert_folder}", data="synthetic-text:300", out=out, **given, **HERE))
    assert result["classes"] == 4 and result["validation_accuracy"] > 0.45
    names = tuple(f"class-{label}" for label in range(4))
    teacher = load_teacher(str(out), modality="text")
    assert teacher.input.max_length == 48 and teacher.outputs[1].classes == names
    texts, labels = decoded("synthetic-text:300", "test", 40)
    batch = teacher.input.collate([teacher.input.prepare(text) for text in texts])
    found = teacher(batch)["logits"]
    assert (found.argmax(1).numpy() == labels).mean() > 0.5
    plain = transformers.AutoModelForSequenceClassification.from_pretrained(out).eval()
    assert tuple(plain.config.id2label[index] for index in range(4)) == names
    for row in (0, 7):
        ids = torch.tensor([teacher.input.prepare(texts[row])])
        with torch.inference_mode():
            torch.testing.assert_close(plain(input_ids=ids).logits[0], found[row], rtol=1e-4, atol=1e-4)


def test_samples_that_cannot_be_decoded_are_told_and_make_no_steps(bert_folder, tmp_path):
    lines = [{"text": f"text {number}" if number % 4 else "", "label": "ab"[number % 2]} for number in range(24)]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    given = {"data": str(tmp_path / "texts.jsonl"), "out": tmp_path / "teacher", "epochs": 1.0, "batch_size": 1}
    run, told = fit_teacher(model=f"hf:{bert_folder}", **given, **HERE), []
    try:
        while True:
            event = next(run)
            told += [event.text] if isinstance(event, Message) else []
    except StopIteration as stop:
        result = stop.value
    assert "6 of 24 labelled samples are left out: 6 empty text" in told
    assert sum(result["rows"].values()) == 18 and result["steps"] == result["rows"]["training"]
    assert result["classes"] == 2


def test_weights_for_a_text_model_are_refused(bert_folder, tmp_path):
    given = {"weights": "w.safetensors", "data": "synthetic-text:40", "out": tmp_path / "teacher"}
    with pytest.raises(UsageError, match="only be used with a model for images"):
        finish(fit_teacher(model=f"hf:{bert_folder}", **given, **HERE))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"mode": "xx"}, "unknown mode 'xx'"),
        ({"epochs": 0.0}, "more than 0 epochs"),
        ({"epochs": float("inf")}, "more than 0 epochs"),
        ({"epochs": float("nan")}, "more than 0 epochs"),
        ({"model": "timm:test_efficientnet", "batch_size": 1}, "batches of one sample"),
        ({"batch_size": 0}, "more than 0 epochs"),
        ({"weights": "w.safetensors"}, "--weights cannot be used with --mode fr"),
        ({"model": "minilm"}, "cannot fit hf:.* on images"),
        ({"data": "synthetic-text:40"}, "cannot fit timm:test_vit.* on texts"),
        ({"validation": 1.0}, "no labelled sample is left to train on"),
        ({"precision": "float8"}, "unknown precision 'float8'"),
    ],
)
def test_what_cannot_be_fitted_is_refused(tmp_path, given, message):
    asked = {
        "model": "timm:test_vit",
        "data": "synthetic:40",
        "mode": "fr",
        "img_size": 64,
        "out": tmp_path / "teacher",
    }
    with pytest.raises(UsageError, match=message):
        finish(fit_teacher(**{**asked, **given}, **HERE))
    assert not (tmp_path / "teacher").exists()


def test_a_folder_that_is_not_empty_and_data_without_labels_are_refused(tmp_path, bert_folder):
    (tmp_path / "texts.txt").write_text("one\ntwo\n")
    with pytest.raises(UsageError, match="needs labels"):
        finish(fit_teacher(model=f"hf:{bert_folder}", data=str(tmp_path / "texts.txt"), out=tmp_path / "out", **HERE))
    with pytest.raises(UsageError, match="is not empty"):
        finish(fit_teacher(model=f"hf:{bert_folder}", data="synthetic-text:40", out=bert_folder, **HERE))


def test_the_same_seed_gives_the_same_teacher(tmp_path):
    weights = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        given = {"mode": "fr", "img_size": 32, "epochs": 1.0, "seed": seed, "out": tmp_path / name}
        finish(fit_teacher(model="timm:test_efficientnet", data="synthetic:40", **given, **HERE))
        weights.append(np.frombuffer((tmp_path / name / "model.safetensors").read_bytes(), np.uint8))
    assert (weights[0] == weights[1]).all() and not np.array_equal(weights[0], weights[2])
