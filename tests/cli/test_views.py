"""`featurecache views`: what is printed, and what a name in a cache can do to a terminal."""

import json

import numpy as np
import pytest
from PIL import Image

from pipelines.events import finish
from pipelines.extract import extract_cache
from tests.sample_inputs import picture

EVIL = "x\x1b[2J\x9b31m\u202ey.png"


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Four images, one with a key that a terminal would act on, in two views."""
    home = tmp_path_factory.mktemp("images")
    for number, name in enumerate([EVIL, "b.png", "c.png", "d.png"]):
        file = home / "data" / "class\x1b[1m" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(number, 20, 30)).save(file)
    options = {"splits": ["train"], "views": 2, "augment": "flip-crop", "workers": 0, "device": "cpu"}
    finish(extract_cache(teacher="random", data=str(home / "data"), out=home / "cache", **options))
    return home / "cache"


def test_a_sheet(run, images, tmp_path):
    done = run("views", images, "--key", "class\x1b[1m/b.png", "--out", tmp_path / "sheet.png", "--img-size", 9)
    assert done.code == 0 and not done.err
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.format == "PNG" and f"sheet.png, {sheet.width:,} x {sheet.height:,} pixels" in done.out
        assert np.asarray(sheet).shape[2] == 3
    assert "student sees  9 pixels, as asked for" in done.out
    assert "views         2, flip-crop" in done.out and "  view 1  class" in done.out


def test_no_name_reaches_the_terminal_as_it_is(run, images, tmp_path):
    key = f"class\x1b[1m/{EVIL}"
    for options in ((), ("--json",)):
        done = run("views", images, "--key", key, "--out", tmp_path / "sheet.png", *options)
        assert done.code == 0
        assert not set(done.out + done.err) & set("\x1b\x9b\u202e")
    sample = json.loads(done.out)["samples"][0]
    assert sample["key"] == key and sample["label"] == "class\x1b[1m"
    wrong = run("views", images, "--key", "\x1b[2J", "--out", tmp_path / "sheet.png")
    assert wrong.code == 2 and "\x1b" not in wrong.err


def test_texts_are_printed(run, cache, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    done = run("views", cache, "--split", "test")
    assert done.code == 0 and not list(tmp_path.iterdir())
    text = next(line for line in done.out.splitlines() if line.startswith("  text    "))[10:]
    tokens = done.out.splitlines()[-1].split()
    assert "".join(tokens).replace("Ġ", " ") == text
    refused = run("views", cache, "--out", tmp_path / "x.png")
    assert refused.code == 2 and "--out is for images" in refused.err


def test_changed_tokens_are_marked():
    from pipelines.cli.views import _tokens

    view = {
        "tokens": ["[CLS]", "the", "[MASK]", "sat", "[SEP]"],
        "chosen": [{"position": 2, "was": "cat"}, {"position": 3, "was": "sat"}],
    }
    assert _tokens(view) == "[CLS] the {cat -> [MASK]} {sat} [SEP]"


def test_wrong_requests(run, images, tmp_path):
    notes = tmp_path / "notes.png"
    notes.write_text("mine")
    assert run("views", images, "--out", notes).code == 2 and notes.read_text() == "mine"
    assert run("views", images, "--split", "test").code == 2
    assert run("views", images, "--views", 0).code == 2
    assert run("views", tmp_path).code == 2
