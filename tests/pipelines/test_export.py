"""The student of a run leaves: the folders and their cards, written whole or not at all."""

import json
import re
import shutil
from dataclasses import replace
from html import unescape
from pathlib import Path

import numpy as np
import pytest
import torch
from markdown_it import MarkdownIt
from PIL import Image

from featurecache.errors import FeatureCacheError, UnknownNameError, UsageError
from featurecache.inputs import ImageInput, TextInput
from featurecache.store.reader import open_cache
from featurecache.teachers.random_projection import byte_tokenizer_json
from pipelines import evaluate_run, export_run, finish, train_student
from pipelines.lineage import lineage, place_name
from pipelines.run_dir import RunDir
from student.export import load_student, save_student
from student.models import Student, build_backbone

TEXT = TextInput(byte_tokenizer_json(), max_length=24)
IMAGE = ImageInput(size=32, crop_pct=0.8, interpolation="bilinear")
LINEAGE = {
    "data": ["train=photos"],
    "split": "train",
    "rows": 60,
    "outputs": {
        "embedding": {
            "teacher": "vit_base",
            "library": "timm",
            "model": "vit_base_patch16_224",
            "revision": "c" * 40,
            "weights_sha256": "d" * 64,
            "license": "apache-2.0",
            "made_by": "e" * 64,
            "probe": None,
            "classes": [],
        }
    },
}
RECIPE = {"split": "train", "objective": "cosine,ce", "steps": 12, "batch_size": 64, "data": None, "init_from": None}
HOSTILE = [
    "<script>alert(1)</script>",
    "![x](http://evil.example/a.png)",
    "`x` <b>",
    "a\n# A heading\n\n---\n",
    "\u202eright to left\x1b[31m",
    "| a | [link](http://evil.example)",
    "   ",
]


def make_run(path, kind="image", *, names=("oak", "größer"), lineage=LINEAGE, **recipe):
    """A finished run as `train_student` leaves it, of a student with weights of its own."""
    torch.manual_seed(0)
    backbone = build_backbone("bert:1x64", TEXT) if kind == "text" else build_backbone("test_resnet", IMAGE)
    student = Student(backbone, {"embedding": 6, "labels": len(names)})
    run = RunDir.create(path, RECIPE | recipe, resume=False)
    facts = {"digest": "ab" * 32, "class_names": list(names), "classes": None, "lineage": lineage}
    save_student(student, run.student, facts)
    run.finish({"parameters": 1234, "rows": {"training": 50, "validation": 10, "invalid": 0, "missing": 0}})
    return path


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file())


def everything(folder):
    return sorted(path.name for path in Path(folder).iterdir())


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A run of each modality, with every kind that is for it: {modality: (run, result)}."""
    found = {}
    for kind, to in {"image": ("safetensors", "timm", "onnx"), "text": ("safetensors", "transformers", "onnx")}.items():
        run = make_run(tmp_path_factory.mktemp(kind) / "run", kind)
        found[kind] = run, finish(export_run(run=run, to=to))
    return found


def test_what_is_written_and_told(exported):
    run, result = exported["image"]
    assert result["run"] == str(run) and result["student"] == "test_resnet" and result["digest"] == "ab" * 32
    assert json.loads(json.dumps(result)) == result
    for kind, facts in result["exports"].items():
        folder = run / "export" / kind
        assert facts["path"] == str(folder) and 0 <= facts["largest_difference"] < 1e-5
        assert facts["bytes"] == sum(path.stat().st_size for path in folder.rglob("*"))
    assert files(run / "export/timm") == ["README.md", "config.json", "heads.safetensors", "model.safetensors"]
    assert files(run / "export/onnx") == ["README.md", "model.onnx"]
    assert files(run / "export/safetensors") == ["README.md", "student.json", "student.safetensors"]
    assert result["exports"]["timm"]["classifier"] == "labels" and result["exports"]["timm"]["heads"] == ["embedding"]
    assert everything(run) == ["export", "recipe.json", "student", "summary.json"]
    run, result = exported["text"]
    assert files(run / "export/onnx") == ["README.md", "model.onnx", "tokenizer.json"]
    assert set(result["exports"]) == {"safetensors", "transformers", "onnx"}


def code_of(card):
    return re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]


@pytest.mark.parametrize(
    ("modality", "kind"),
    [
        *(("image", kind) for kind in ("safetensors", "timm", "onnx")),
        *(("text", kind) for kind in ("safetensors", "transformers", "onnx")),
    ],
)
def test_the_code_in_the_card_gives_what_the_student_gives(exported, modality, kind, monkeypatch):
    run, _ = exported[modality]
    monkeypatch.chdir(run / "export" / kind)
    photo = np.random.default_rng(0).integers(0, 256, (40, 52, 3), dtype=np.uint8)
    Image.fromarray(photo).save("photo.jpg", quality=95)
    said = {}
    try:
        exec(code_of(Path("README.md").read_text()), said)  # noqa: S102
        photo = np.asarray(Image.open("photo.jpg").convert("RGB"))
    finally:
        Path("photo.jpg").unlink()
    student, _ = load_student(run / "student")
    samples = [photo] if modality == "image" else ["one text", "and another"]
    network = student.backbone.input
    with torch.inference_mode():
        expected = student(network.collate([network.prepare(sample) for sample in samples]))
    found = dict(said["outputs"])
    found |= {name: said[name] for name in ("features",) if name in said}
    found |= {"labels": said["logits"]} if "logits" in said else {}
    assert set(found) == {"features", "embedding", "labels"}
    for name, value in found.items():
        assert (torch.as_tensor(value) - expected[name]).abs().max() < 1e-5, name
    if kind == "timm":
        assert said["classes"] == ["oak", "größer"]


def test_the_native_folder_is_the_student_again(exported):
    run, _ = exported["text"]
    first, facts = load_student(run / "student")
    again, kept = load_student(run / "export/safetensors")
    assert facts == kept
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in first.state_dict().items())


def test_what_a_card_says(exported):
    card = (exported["image"][0] / "export/timm/README.md").read_text()
    front, _, rest = card.removeprefix("---\n").partition("---\n")
    assert "library_name: timm" in front and "license" not in front
    for fact in (
        "`test_resnet`, taught from a cache",
        "1,234 parameters",
        "RGB images of 32 x 32 pixels",
        "the shorter side resized to 40 (bilinear, crop_pct 0.8), the centre cut out",
        "less mean [0.485, 0.456, 0.406], over standard deviation [0.229, 0.224, 0.225]",
        "`features`: 96 numbers",
        "`embedding`: 6 numbers, a linear layer upon the features, in `heads.safetensors`",
        "`labels`: 2 numbers, a linear layer upon the features, the model's own classifier",
        "0. `oak`\n1. `größer`\n",
        f"digest of the cache: `{'ab' * 32}`",
        f"teacher `vit_base`, library `timm`, model `vit_base_patch16_224`, revision `{'c' * 40}`",
        f"SHA-256 of its weights `{'d' * 64}`",
        "data: `train=photos`, split `train`, 60 rows",
        "objective `cosine,ce`",
        "optimizer steps: `12`",
        "rows for training: 50",
        "Not evaluated",
        "teacher `vit_base`: `apache-2.0`, as stated beside its weights",
        "* data: not recorded",
    ):
        assert fact in rest, fact
    text = (exported["text"][0] / "export/onnx/README.md").read_text()
    assert "texts, as tokens of `tokenizer.json`, cut at 24" in text


def test_licences_that_are_stated(tmp_path):
    run = make_run(tmp_path / "run")
    finish(export_run(run=run, teacher_license="CC-BY-NC-4.0", data_license="<i>mine</i>"))
    card = (run / "export/safetensors/README.md").read_text()
    assert "* teacher: `CC-BY-NC-4.0`, as stated at the export\n" in card and "apache-2.0" not in card
    assert "* data: &#60;i&#62;mine&#60;&#47;i&#62;, as stated at the export\n" in card


@pytest.mark.parametrize("lineage", [{}, None])
def test_a_run_that_recorded_less_says_so(lineage, tmp_path):
    run = make_run(tmp_path / "run", lineage=lineage or {})
    if lineage is None:
        file = run / "student/student.json"
        value = json.loads(file.read_text())
        del value["lineage"]
        file.write_text(json.dumps(value))
    finish(export_run(run=run))
    card = (run / "export/safetensors/README.md").read_text()
    assert "* teacher: not recorded" in card and "* data: not recorded, split `train`" in card


def test_names_of_a_stranger_are_text_and_nothing_else(tmp_path):
    output = LINEAGE["outputs"]["embedding"]
    outputs = {
        name: {**output, **dict.fromkeys(("teacher", "model", "revision", "license", "weights_sha256", "probe"), name)}
        for name in HOSTILE
    }
    learned = {**LINEAGE, "data": HOSTILE, "split": HOSTILE[0], "outputs": outputs}
    run = make_run(tmp_path / "run", names=HOSTILE, lineage=learned, split=HOSTILE[0], init_from=HOSTILE[1])
    RunDir(run).keep_scores(HOSTILE[1], {"rows": 3, "accuracy": 0.5})
    finish(export_run(run=run, to=("timm", "safetensors"), teacher_license=HOSTILE[0], data_license=HOSTILE[3]))
    plain = make_run(tmp_path / "plain")
    finish(export_run(run=plain, to=("timm",)))
    card, usual = ((each / "export/timm/README.md").read_text() for each in (run, plain))
    assert all(char.isprintable() or char == "\n" for char in card)
    rendered, expected = (MarkdownIt("commonmark").render(text) for text in (card, usual))
    for tag in ("h1", "h2", "pre", "hr", "script", "img", "a ", "b", "i", "table"):
        assert rendered.count(f"<{tag}") - rendered.count("<blockquote") == expected.count(f"<{tag}"), tag
    shown = unescape(re.sub(r"</?(code|li|p|ul|ol|strong|em)[^>]*>", "", rendered))
    for name in (HOSTILE[0], HOSTILE[1], HOSTILE[2], HOSTILE[5], r"a\n# A heading\n\n---\n"):
        assert f"\n{name}\n" in shown, name  # a class, alone on its line
    assert json.loads((run / "export/timm/config.json").read_text())["label_names"] == HOSTILE
    assert code_of(card) == code_of(usual)


def test_scores_are_those_of_the_last_evaluation(text_cache, tmp_path):
    run = tmp_path / "run"
    options = {"student": "bert:1x64", "max_length": 24, "steps": 3, "workers": 0, "device": "cpu"}
    finish(train_student(cache=text_cache, out=run, objective="kl,ce", **options))
    scores = finish(evaluate_run(run=run, workers=0, device="cpu"))
    assert RunDir(run).scores() == {"test": scores}
    finish(export_run(run=run, to=("transformers",), out=tmp_path / "out"))
    card = (tmp_path / "out/README.md").read_text()
    assert f"on 40 rows of `test`: accuracy {scores['accuracy']:.4f}, " in card
    assert f"digest of the cache: `{open_cache(text_cache).seal.digest}`" in card
    weights = open_cache(text_cache).split("train").teacher_part("logits").identity["teacher"]["weights_sha256"]
    words = f"teacher `random-text`, library `random`, model `random-text`, SHA-256 of its weights `{weights}`"
    assert f"`logits` was learned from {words}" in card and "data: `synthetic-text:160`" in card
    assert "* teacher `random-text`: not recorded" in card
    assert str(tmp_path) not in "".join(path.read_text() for path in (tmp_path / "out").rglob("*.[jm][sd]*"))


def test_a_teachers_class_names_are_those_of_its_logits(tmp_path):
    logits = {**LINEAGE["outputs"]["embedding"], "classes": ["first", "second", "third"]}
    run = make_run(tmp_path / "run", lineage={**LINEAGE, "outputs": {"logits": logits}})
    student = Student(build_backbone("test_resnet", IMAGE), {"logits": 3}, shared={"labels": "logits"})
    facts = load_student(run / "student")[1]
    save_student(student, run / "student", {name: facts[name] for name in ("digest", "class_names", "lineage")})
    finish(export_run(run=run, to=("timm",)))
    config = json.loads((run / "export/timm/config.json").read_text())
    assert config["label_names"] == ["first", "second", "third"]
    assert "`labels` is another name of `logits`" in (run / "export/timm/README.md").read_text()


def test_a_run_that_is_not_finished_or_none(tmp_path):
    run = make_run(tmp_path / "run")
    (run / "summary.json").unlink()
    with pytest.raises(UsageError, match=r"is not finished.*--resume"):
        finish(export_run(run=run))
    with pytest.raises(UsageError, match=r"is not a run"):
        finish(export_run(run=tmp_path / "nothing"))
    assert not (run / "export").exists()


def test_kinds_that_cannot_be(tmp_path):
    run = make_run(tmp_path / "run")
    with pytest.raises(UnknownNameError, match="did you mean 'transformers'"):
        finish(export_run(run=run, to=("transformer",)))
    with pytest.raises(UsageError, match="it is a timm model"):
        finish(export_run(run=run, to=("safetensors", "transformers")))
    with pytest.raises(UsageError, match="no kind of export is named"):
        finish(export_run(run=run, to=()))
    assert everything(run) == ["recipe.json", "student", "summary.json"]  # not even the kind that could be


@pytest.mark.parametrize("what", ["file", "folder", "link"])
def test_nothing_is_written_over(what, tmp_path):
    run, out = make_run(tmp_path / "run"), tmp_path / "out"
    if what == "folder":
        out.mkdir()
        (out / "mine").touch()
    elif what == "file":
        out.touch()
    else:
        (tmp_path / "elsewhere").mkdir()
        out.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match=r"out is not empty.*another --out"):
        finish(export_run(run=run, out=out))
    finish(export_run(run=run))
    with pytest.raises(UsageError, match="export/safetensors is not empty"):
        finish(export_run(run=run, to=("timm", "safetensors")))
    assert everything(run / "export") == ["safetensors"]


def test_where_kinds_go(tmp_path):
    run = make_run(tmp_path / "run")
    (tmp_path / "empty").mkdir()
    finish(export_run(run=run, out=tmp_path / "empty"))
    finish(export_run(run=run, out=tmp_path / "new/deep", to=("timm", "safetensors", "timm")))
    assert "student.json" in files(tmp_path / "empty")
    assert everything(tmp_path / "new/deep") == ["safetensors", "timm"]
    assert oct((tmp_path / "new/deep/timm").stat().st_mode) == oct((tmp_path / "new").stat().st_mode)
    shutil.rmtree(run)  # the copies need nothing of it
    assert load_student(tmp_path / "empty")[0].widths == {"embedding": 6, "labels": 2}


@pytest.mark.parametrize("how", ["interrupted", "closed", "failed"])
def test_what_does_not_come_to_its_end_leaves_nothing(how, tmp_path, monkeypatch):
    run = make_run(tmp_path / "run")
    before = files(tmp_path)
    exporting = export_run(run=run, to=("safetensors", "timm"), out=tmp_path / "out")
    next(exporting)
    next(exporting)  # the first kind is written
    assert len(files(tmp_path)) > len(before)
    if how == "interrupted":
        with pytest.raises(KeyboardInterrupt):
            exporting.throw(KeyboardInterrupt())
    elif how == "closed":
        exporting.close()
    else:
        monkeypatch.setattr("student.export.timm_folder.check_agreement", refuse)
        with pytest.raises(FeatureCacheError, match="something else"):
            finish(exporting)
    assert files(tmp_path) == before and everything(tmp_path) == ["run"]


def refuse(*_, **__):
    raise FeatureCacheError("something else")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("/data/ada/secret/photos", "photos"),
        ("train=/data/ada/a-{000..146}.tar", "train=a-{000..146}.tar"),
        ("C:\\data\\photos", "photos"),
        ("./photos", "photos"),
        ("https://user:token@host.example/a/b.tar?signature=1", "https://host.example/a/b.tar"),
        ("hf:org/name", "hf:org/name"),
        ("synthetic:60", "synthetic:60"),
    ],
)
def test_places_are_named_without_what_is_nobodys_business(text, name):
    assert place_name(text) == name


def test_a_cache_may_say_anything_of_its_teacher(text_cache, monkeypatch):
    reader = open_cache(text_cache).split("train")
    part = reader.teacher_part("logits")
    strange = replace(part, provenance={"teacher": ["x"]}, identity={**part.identity, "teacher": {"model": {"a": 1}}})
    monkeypatch.setattr(reader, "teacher_part", lambda _: strange)
    found = lineage(reader, {"logits": (reader, "logits")})["outputs"]["logits"]
    assert found["teacher"] == "random-text" and found["model"] is None and found["license"] is None
    reader.cache.source = {"data": [{"a": 1}, "digits"]}
    assert lineage(reader, {})["data"] == ["digits"]
    reader.cache.source = {"data": 5}
    assert lineage(reader, {})["data"] == []
