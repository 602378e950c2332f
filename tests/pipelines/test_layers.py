"""Students that learn from the layers of a teacher, from the data to the run: texts and images, and what is refused."""

import json
import shutil

import numpy as np
import pytest
import timm
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from featurecache.errors import CorruptCacheError, UsageError
from featurecache.store.reader import open_cache
from pipelines import extract_cache, finish, train_student
from pipelines.describe import describe_cache
from pipelines.evaluate import evaluate_run
from pipelines.extend import extend_cache
from pipelines.verify import verify_cache
from student.export import load_student

HERE = {"workers": 0, "device": "cpu"}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{number}" for number in range(40))]
FAST = {"steps": 12, "batch_size": 16, "validation": 0.1, **HERE}


def write_teacher(folder):
    """A random BERT of three layers of width 24 with two heads, of texts of at most 20 tokens."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.BertConfig(vocab_size=len(WORDS), max_position_embeddings=20, **sizes)
    transformers.BertModel(config).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({word: at for at, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.add_special_tokens(WORDS[:5])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """60 texts of 1 to 25 words, and a teacher: (data, teacher)."""
    folder = tmp_path_factory.mktemp("texts")
    draw = np.random.default_rng(0)
    lines = [
        {"id": f"k{row}", "text": " ".join(draw.choice(WORDS[5:], draw.integers(1, 26))), "label": "ab"[row % 2]}
        for row in range(60)
    ]
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder / "data.jsonl", write_teacher(folder)


@pytest.fixture(scope="module")
def cache(texts, tmp_path_factory):
    """The embedding and two layers, in two views."""
    data, teacher = texts
    path = tmp_path_factory.mktemp("layers") / "cache"
    asked = {"outputs": ["embedding", "hidden.1", "qkv.last"], "views": 2}
    finish(extract_cache(teacher=str(teacher), data=str(data), out=path, **asked, **HERE))
    return path


def test_a_student_learns_from_layers_of_texts(cache, tmp_path):
    objective = "hidden(layer=1,student_layer=1),minilm:10,ce"
    run = {"cache": cache, "student": "bert:2x32", "objective": objective, "out": tmp_path / "run", **FAST}
    result = finish(train_student(**run))
    assert set(result["training"]) == {"loss", "hidden", "minilm", "ce"}
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(value) for line in lines for value in line.values() if isinstance(value, float))
    student, _ = load_student(tmp_path / "run" / "student")
    assert list(student.heads) == ["labels"] and not student.layers
    scores = finish(evaluate_run(run=tmp_path / "run", **HERE))
    assert 0 <= scores["accuracy"] <= 1


def test_several_pairs_of_layers_lower_their_error(cache, tmp_path):
    objective = "hidden(layer=1,student_layer=1),hidden(layer=1,student_layer=2)"
    run = {"cache": cache, "student": "bert:2x32", "objective": objective, "out": tmp_path / "run", **FAST}
    result = finish(train_student(**{**run, "steps": 60, "learning_rate": 3e-3}))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    first = next(line for line in lines if "hidden" in line)
    assert {"hidden", "hidden-2"} < set(first)
    assert result["training"]["hidden"] < 0.9 * first["hidden"]


@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        ({"objective": "hidden(layer=2)"}, "needs hidden.2", "fc extend {cache} --outputs hidden.2"),
        (
            {"objective": "attention"},
            "qkv.3 of the teacher has 2 attention heads, and qkv.2 of the student has 1",
            "minilm",
        ),
        ({"objective": "minilm", "max_length": 10}, "texts cut at 20, and the student's are at 10", "--max-length"),
        ({"objective": "hidden(student_layer=3)"}, "the student has no hidden.3", "hidden.0, hidden.1, hidden.2"),
        ({"objective": "minilm(relation_heads=5)"}, "5 relation heads do not divide", "1, 2, 4, 8"),
    ],
)
def test_what_cannot_be_is_refused_before_training(cache, tmp_path, options, message, hint):
    run = {"cache": cache, "student": "bert:2x32", "out": tmp_path / "run", **FAST, **options}
    with pytest.raises(UsageError) as refused:
        finish(train_student(**run))
    assert message in refused.value.message and hint.format(cache=cache) in refused.value.hint
    assert not (tmp_path / "run").exists()


def test_layers_are_added_to_a_cache_that_stands(cache, texts, tmp_path):
    _, teacher = texts
    path = shutil.copytree(cache, tmp_path / "cache")
    result = finish(extend_cache(cache=path, teacher=str(teacher), outputs=["hidden.last"], **HERE))
    assert result["added"] == [f"train/{teacher.name}-2"] or len(result["added"]) == 1
    reader = open_cache(path).split("train")
    assert {"embedding", "hidden.1", "hidden.3", "qkv.3"} == set(reader.outputs)
    told = describe_cache(path)["splits"]["train"][result["added"][0].split("/")[1]]
    assert told["outputs"]["hidden.3"].startswith("[24] for each token float16")
    checked = finish(verify_cache(cache=path, recompute=20, teacher=str(teacher), device="cpu"))
    assert checked["ok"] and set(checked["recomputed"]["train"]) == set(reader.outputs)
    again = finish(extend_cache(cache=path, teacher=str(teacher), outputs=["hidden.3", "hidden.1"], **HERE))
    assert again["added"] == []
    run = {"cache": path, "student": "bert:2x32", "objective": "hidden", "out": tmp_path / "run", **FAST}
    assert finish(train_student(**{**run, "steps": 2}))["training"]["hidden"] > 0
    assert json.loads((tmp_path / "run" / "recipe.json").read_text())["targets"].keys() == {"hidden.3"}


def test_a_dry_run_counts_the_tokens(texts, tmp_path, cache):
    data, teacher = texts
    asked = {"outputs": ["embedding", "hidden.1", "qkv.last"], "views": 2}
    told = finish(
        extract_cache(teacher=str(teacher), data=str(data), out=tmp_path / "no", dry_run=True, **asked, **HERE)
    )
    stored = {
        array: sum(file.stat().st_size for file in (cache / "train" / part / array / "c").rglob("*") if file.is_file())
        for part, arrays in ((key.split("/")[1], value) for key, value in told["bytes_by_array"].items())
        for array in arrays
        if array in ("hidden.1", "qkv.3", "offsets")
    }
    found = {
        name: size for arrays in told["bytes_by_array"].values() for name, size in arrays.items() if name in stored
    }
    assert found == stored


def test_rows_whose_tokens_were_counted_otherwise_are_refused(cache, monkeypatch, tmp_path):
    from featurecache.store.reader import CacheReader

    lengths = CacheReader.lengths
    monkeypatch.setattr(CacheReader, "lengths", lambda self, *at, **options: lengths(self, *at, **options) + 1)
    run = {"cache": cache, "student": "bert:2x32", "objective": "minilm", "out": tmp_path / "run", **FAST}
    with pytest.raises(CorruptCacheError, match=r"another number of tokens than qkv\.3 was made for"):
        finish(train_student(**run))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """24 images in two classes, and the layers of a random ViT of timm: (data, cache)."""
    folder = tmp_path_factory.mktemp("pictures")
    draw = np.random.default_rng(0)
    for row in range(24):
        place = folder / "data" / "ab"[row % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(place / f"{row}.png")
    torch.manual_seed(0)
    network = timm.create_model("test_vit", num_classes=0)
    timm.models.save_for_hf(network, folder / "vit", safe_serialization=True)
    asked = {"outputs": ["embedding", "hidden.2", "qkv.6"], "views": 2, "img_size": 64, "store_inputs": 64}
    finish(extract_cache(teacher=str(folder / "vit"), data=str(folder / "data"), out=folder / "cache", **asked, **HERE))
    return folder / "data", folder / "cache"


def test_a_student_learns_from_layers_of_images(pictures, tmp_path):
    _, cache = pictures
    assert open_cache(cache).split("train").outputs["hidden.2"].shape == (17, 64)
    objective = "hidden(layer=2,student_layer=3),minilm,attention,align-uniform"
    run = {"cache": cache, "student": "test_vit2", "objective": objective, "out": tmp_path / "run", **FAST}
    result = finish(train_student(**{**run, "steps": 3, "batch_size": 8}))
    assert {"hidden", "minilm", "attention"} < set(result["training"])
    assert finish(evaluate_run(run=tmp_path / "run", **HERE))["rows"]


@pytest.mark.parametrize(
    ("student", "counts"), [({"student": "test_vit", "img_size": 96}, (17, 37)), ({"student": "test_resnet"}, (17, 4))]
)
def test_another_grid_of_patches_is_refused_with_both_counts(pictures, tmp_path, student, counts):
    run = {"cache": pictures[1], "objective": "hidden", "out": tmp_path / "run", **FAST, **student}
    with pytest.raises(UsageError, match=f"has {counts[0]} tokens for each image, the student's .* has {counts[1]}"):
        finish(train_student(**run))
