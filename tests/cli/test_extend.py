"""`fc extend` as it is typed, and the exit codes of what the teacher did not see."""

import json
import shutil

import pytest

from featurecache.augment.operations.flip import Flip
from tests.pipelines.altered import image_folder, with_another_pixel


@pytest.fixture
def images(tmp_path, run):
    """A folder of images and a cache of its plain view."""
    folder = image_folder(tmp_path / "images", 20)
    made = run(
        "extract", "--teacher", "random", "--data", f"train={folder}", "--out", tmp_path / "cache", "--workers", 0
    )
    assert made.code == 0
    return tmp_path / "cache", folder


def test_views_and_inputs_are_added(run, images):
    cache, _ = images
    done = run("extend", cache, "--views", "+2", "--store-inputs", 24, "--workers", 0, "--json")
    assert done.code == 0
    result = json.loads(done.out)
    added = ["train/inputs", "train/random-image.v1", "train/views"]
    assert result["added"] == added and result["cache"] == str(cache) and len(result["digest"]) == 64
    again = run("extend", cache, "--views", "3", "--workers", 0, "--json")
    assert json.loads(again.out)["added"] == [] and json.loads(again.out)["digest"] == result["digest"]
    assert "nothing was added" in again.err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ("", 2, ["nothing to add was named", "--views +8"]),
        ("--views lots", 2, ["lots", "+8"]),
        ("--store-inputs 8 --seed 2", 2, ["no difference"]),
        ("--views +1 --augment stronk", 2, ["stronk", "strong"]),
        ("--views +1 --augment mask", 2, ["mask"]),
        ("--views +1 --img-size 64", 2, ["--img-size without --teacher"]),
        ("--split train2", 2, ["--data train2="]),
        ("--outputs logits", 2, ["logits", "embedding"]),
        ("--views +1 --data train=synthetic:9", None, []),
    ],
)
def test_refusals(run, images, arguments, code, words):
    cache, _ = images
    ended = run("extend", cache, *arguments.split(), "--workers", 0)
    assert ended.code == code if code else ended.code not in (0, 1)
    assert all(word in " ".join(ended.err.split()) for word in words)
    assert "Traceback" not in ended.err and not ended.out


def test_other_data_and_other_views_have_the_code_of_another_identity(run, images):
    cache, folder = images
    assert run("extend", cache, "--views", "+2", "--workers", 0).code == 0
    assert run("extend", cache, "--views", "+2", "--augment", "strong", "--workers", 0).code == 4
    shutil.copy(folder / "a/00.bmp", folder / "a/99.bmp")
    assert run("extend", cache, "--views", "+2", "--workers", 0).code == 4


def test_what_the_teacher_did_not_see_ends_training_with_code_4(run, images, monkeypatch, tmp_path):
    cache, folder = images
    assert run("extend", cache, "--views", "+1", "--workers", 0).code == 0
    train = ("train-student", "--cache", cache, "--student", "test_resnet", "--steps", 3, "--batch-size", 8)
    train += ("--workers", 0, "--device", "cpu", "--out", tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(Flip, "change", lambda *_: None)
        ended = run(*train)
        assert ended.code == 4 and "makes other views here" in " ".join(ended.err.split())
    with_another_pixel(folder)
    ended = run(*train)
    assert ended.code == 4 and "its bytes differ" in " ".join(ended.err.split())
    assert "--check-inputs off" in " ".join(ended.err.split())
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
    assert run(*train, "--check-inputs", "off").code == 0
