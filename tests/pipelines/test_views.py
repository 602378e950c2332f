"""Contact sheets: what stands on them is what training is shown, and what the cache says of it."""

import shutil
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from featurecache.errors import IdentityError, SourceError, UsageError
from featurecache.inputs import ImageInput
from featurecache.store.reader import open_cache
from pipelines import extract_cache, finish
from pipelines.answers import _MOST_ROWS, ask
from pipelines.load import teacher_input
from pipelines.shown import Samples, show
from pipelines.views import show_views
from tests.sample_inputs import picture

VIEWS, PIXELS, STORED = 5, 16, 12
extract = partial(extract_cache, teacher="random", workers=0, device="cpu")
TEXT_TEACHER = """
import torch
from featurecache.inputs import TextInput
from tests.sample_inputs import special_tokenizer_json

def make():
    def network(ids, mask):
        return torch.nn.functional.one_hot(ids * mask, 300).float().mean(1)
    network.input = TextInput(special_tokenizer_json(), max_length=24)
    return network
"""


def paint(folder):
    for number in range(10):
        file = folder / "ab"[number % 2] / f"{number:02}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(number, 30 + number, 44)).save(file)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return paint(tmp_path_factory.mktemp("images") / "data")


def cache_of(path, folder, **options):
    finish(extract(data=str(folder), out=path, splits=["train"], **options))
    return path


@pytest.fixture(scope="module")
def cache(tmp_path_factory, folder):
    """Ten images in five views, mixed, with the logits of four unnamed classes."""
    options = {"views": VIEWS, "augment": "standard+mix", "model_kwargs": {"classes": 4}}
    return cache_of(tmp_path_factory.mktemp("c") / "cache", folder, **options)


@pytest.fixture(scope="module")
def moved(tmp_path_factory):
    """A cache that holds inputs, and whose samples are gone; with embeddings alone."""
    folder = paint(tmp_path_factory.mktemp("gone") / "data")
    path = tmp_path_factory.mktemp("m") / "cache"
    cache_of(path, folder, views=3, augment="flip-crop", store_inputs=STORED)
    shutil.rmtree(folder)
    return path


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    home = tmp_path_factory.mktemp("t")
    (home / "teacher_of_texts.py").write_text(TEXT_TEACHER)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(home)
        options = {"teacher": "torch:teacher_of_texts:make", "splits": ["train"], "views": 3}
        finish(extract(data="synthetic-text:30", out=home / "cache", **options))
    return home / "cache"


def occurs(picture, sheet):
    """Whether uint8 (h, w, 3) is somewhere in a larger one."""
    height, width = picture.shape[:2]
    starts = np.argwhere((sheet[: 1 - height or None, : 1 - width or None] == picture[0, 0]).all(axis=2))
    return any((sheet[y : y + height, x : x + width] == picture).all() for y, x in starts)


def enlarged(picture, times):
    return picture.repeat(times, axis=0).repeat(times, axis=1)


def test_every_picture_on_the_sheet_is_what_training_is_shown(cache, folder, tmp_path):
    """Made again without the loader, from the stored parameters and the decoded files."""
    facts = show_views(cache=cache, keys=["b/03.png"], out=tmp_path / "sheet.png")
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape == (facts["height"], facts["width"], 3)
    opened = open_cache(cache)
    reader = opened.split()
    stored, row = reader.stored_views, reader.keys.index("b/03.png")
    assert facts["samples"][0]["row"] == row
    frames = {key: np.asarray(Image.open(folder / key)) for key in reader.keys}
    mixed = []
    for view in range(VIEWS):
        own = stored.parameters(np.array([row]), np.array([view]))
        offset = int(stored.augmentation.partner_offsets(own)[0])
        other = stored.parameters(np.array([row + offset]), np.array([view]))
        told = facts["samples"][0]["views"][view]
        assert told.get("mixed_with") == (reader.keys[row + offset] if offset else None)
        mixed.append(bool(offset))
        for size in (PIXELS, PIXELS // 2):
            network_input = replace(teacher_input(opened, reader), size=size)
            one = network_input.show(frames["b/03.png"], own[0])
            two = network_input.show(frames[reader.keys[row + offset]], other[0])
            images = torch.from_numpy(np.stack([one, two]))
            parameters = np.concatenate([own, other])
            made = stored.augmentation.finish(images, parameters, np.array([1 if offset else -1]))
            shown = made[0].permute(1, 2, 0).numpy()
            assert occurs(enlarged(shown, 224 // size), sheet), (view, size)
    assert mixed == [False] + [True] * (VIEWS - 1)
    assert occurs(enlarged(frames["b/03.png"], 224 // 44), sheet)
    assert facts["student_size"] == PIXELS // 2 and facts["student_size_is"] == "half of the teacher's"


def test_one_view_more_changes_no_other(cache, tmp_path):
    """A sheet of fewer views holds the same ones, and the sheet is the same each time."""
    few = show_views(cache=cache, views=2, out=tmp_path / "few.png")["samples"][0]["views"]
    all_of_them = show_views(cache=cache, out=tmp_path / "all.png")["samples"][0]["views"]
    assert few == all_of_them[:2] and len(all_of_them) == VIEWS
    first = (tmp_path / "all.png").read_bytes()
    show_views(cache=cache, out=tmp_path / "all.png")
    assert (tmp_path / "all.png").read_bytes() == first


def test_top_classes_are_those_of_each_views_own_logits(cache, tmp_path):
    facts = show_views(cache=cache, keys=["a/04.png"], out=tmp_path / "sheet.png")
    reader = open_cache(cache).split()
    row = reader.keys.index("a/04.png")
    for view in range(VIEWS):
        logits = reader.read([row], view=view, outputs=["logits"])["logits"][0].double().numpy()
        chances = np.exp(logits) / np.exp(logits).sum()
        best = np.argsort(-chances)[:3]
        told = facts["samples"][0]["views"][view]["classes"]
        assert [name for name, _ in told] == [f"class {number}" for number in best]
        np.testing.assert_allclose([value for _, value in told], chances[best], rtol=1e-6)
    assert facts["output"] == "logits" and facts["temperature"] == 1


@pytest.mark.parametrize(("temperatures", "expected"), [((1.0, 4.0), 1.0), ((2.0, 4.0), 2.0)])
def test_sparse_logits_give_the_probabilities_of_all_classes(folder, tmp_path, temperatures, expected):
    """Two of four classes are kept; their share is of all four."""
    shared = {"views": 1, "model_kwargs": {"classes": 4}}
    whole = cache_of(tmp_path / "whole", folder, encode={"logits": "float32"}, **shared)
    kept = cache_of(tmp_path / "kept", folder, encode={"logits": "topk:2"}, temperatures=temperatures, **shared)
    exact = open_cache(whole).split().read([2], outputs=["logits"])["logits"][0].double().numpy() / expected
    chances = np.sort(np.exp(exact) / np.exp(exact).sum())[::-1]
    facts = show_views(cache=kept, keys=["a/04.png"], out=tmp_path / "sheet.png")
    told = facts["samples"][0]["views"][0]["classes"]
    assert facts["temperature"] == expected
    np.testing.assert_allclose([value for _, value in told], chances[:2], rtol=2e-3)


def test_neighbours_are_the_nearest_of_view_0(moved, tmp_path):
    facts = show_views(cache=moved, keys=["b/05.png"], out=tmp_path / "sheet.png")
    reader = open_cache(moved).split()
    row = reader.keys.index("b/05.png")
    bank = reader.read(np.arange(len(reader)))["embedding"].double().numpy()
    bank /= np.linalg.norm(bank, axis=1, keepdims=True)
    for view in range(3):
        own = reader.read([row], view=view)["embedding"][0].double().numpy()
        cosines = bank @ own / np.linalg.norm(own)
        cosines[row] = -2
        best = np.argsort(-cosines)[:3]
        told = facts["samples"][0]["views"][view]["neighbours"]
        assert [key for key, _ in told] == [reader.keys[number] for number in best]
        np.testing.assert_allclose([value for _, value in told], cosines[best], atol=1e-5)
    assert facts["among"] == 10


def test_neighbours_are_looked_for_among_so_many_rows(text_cache, monkeypatch):
    assert _MOST_ROWS == 10_000
    monkeypatch.setattr("pipelines.answers._MOST_ROWS", 7)
    reader = open_cache(text_cache).split()
    monkeypatch.setattr(type(reader), "outputs", {"embedding": reader.outputs["embedding"]})
    answers = ask(reader, [0], 1)
    spread = {reader.keys[number * len(reader) // 7] for number in range(1, 7)}
    assert answers.among == 7 and {key for key, _ in answers.by_view[0, 0].items} <= spread


def test_samples_that_are_gone_are_shown_from_the_cache(moved, tmp_path):
    facts = show_views(cache=moved, out=tmp_path / "sheet.png")
    assert facts["samples_from"] == facts["student_samples_from"] == "stored inputs"
    assert (facts["student_size"], facts["student_size_is"]) == (STORED, "the size of the stored inputs")
    reader = open_cache(moved).split()
    part = reader.stored_inputs().part
    frame = part.take(part.part.array("image"), np.array([0]))[0]
    assert occurs(enlarged(frame, 224 // STORED), np.asarray(Image.open(tmp_path / "sheet.png")))
    assert facts["samples"][0]["original"] == [STORED, STORED]


def test_named_data_are_what_both_are_shown(moved, tmp_path):
    folder = paint(tmp_path / "again")
    facts = show_views(cache=moved, data=[str(folder)], img_size=10, out=tmp_path / "sheet.png")
    assert facts["samples_from"] == facts["student_samples_from"] == "data"
    assert (facts["student_size"], facts["student_size_is"]) == (10, "as asked for")


def test_where_samples_are_here_the_student_is_still_shown_stored_inputs(folder, tmp_path):
    """As training does, unless --data are named."""
    path = cache_of(tmp_path / "cache", folder, views=2, store_inputs=STORED)
    facts = show_views(cache=path, out=tmp_path / "sheet.png")
    assert (facts["samples_from"], facts["student_samples_from"]) == ("data", "stored inputs")


def test_a_sample_that_was_changed_is_refused(tmp_path):
    folder = paint(tmp_path / "data")
    path = cache_of(tmp_path / "cache", folder, views=2, augment="none")
    pixels = np.asarray(Image.open(folder / "a/00.png")).copy()
    pixels[0, 0, 0] ^= 1
    Image.fromarray(pixels).save(folder / "a/00.png")
    with pytest.raises(IdentityError, match="'a/00.png' is not what the teacher saw: its bytes differ") as told:
        show_views(cache=path, out=tmp_path / "sheet.png")
    assert "--check-inputs" not in told.value.hint and not (tmp_path / "sheet.png").exists()
    assert show_views(cache=path, keys=["b/01.png"], out=tmp_path / "sheet.png")["samples"][0]["row"] == 5


def test_a_changed_partner_is_refused(cache, folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    told = show_views(cache=cache, out=tmp_path / "sheet.png")["samples"][0]
    partner = told["views"][1]["mixed_with"]
    Image.fromarray(picture(99, 20, 20)).save(copy / partner)
    with pytest.raises(IdentityError, match=f"'{partner}' is not what the teacher saw"):
        show_views(cache=cache, data=[str(copy)], out=tmp_path / "sheet.png")


def test_other_code_than_the_teachers_is_refused(cache, tmp_path, monkeypatch):
    monkeypatch.setattr("featurecache.augment.ImageAugmentation.proof", lambda self: "0" * 64)
    with pytest.raises(IdentityError, match="makes other views here"):
        show_views(cache=cache, out=tmp_path / "sheet.png")


def test_samples_that_are_nowhere(folder, tmp_path):
    data = shutil.copytree(folder, tmp_path / "data")
    path = cache_of(tmp_path / "cache", data)
    shutil.rmtree(data)
    with pytest.raises(SourceError, match="not where the cache says they were"):
        show_views(cache=path, out=tmp_path / "sheet.png")


def test_keys(cache, tmp_path):
    ask_for = partial(show_views, cache=cache, out=tmp_path / "sheet.png")
    facts = ask_for(keys=["b/07.png", "a/02.png", "b/07.png"])
    assert [sample["key"] for sample in facts["samples"]] == ["b/07.png", "a/02.png"]
    assert [sample["label"] for sample in facts["samples"]] == ["b", "a"]
    assert [sample["key"] for sample in ask_for()["samples"]] == ["a/00.png"]
    with pytest.raises(UsageError, match="'b/7.png'") as told:
        ask_for(keys=["b/7.png"])
    assert "did you mean 'b/07.png'?" in told.value.hint
    monkey = [f"{'ab'[number % 2]}/{number:02}.png" for number in range(10)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipelines.views._MOST_CELLS", 49)
        with pytest.raises(UsageError, match="10 samples in 5 views"):
            ask_for(keys=monkey)


def test_a_row_without_outputs_says_why(tmp_path):
    folder = paint(tmp_path / "data")
    (folder / "a/00.png").write_bytes(b"no image")
    path = cache_of(tmp_path / "cache", folder, views=2, augment="flip-crop")
    assert show_views(cache=path, out=tmp_path / "sheet.png")["samples"][0]["key"] == "a/02.png"
    reader = open_cache(path).split()
    assert ask(reader, [0], 2).by_view[0, 1].problem == "invalid: corrupt image"
    with pytest.raises(UsageError, match=r"'a/00.png' cannot be shown: corrupt image"):
        show_views(cache=path, keys=["a/00.png"], out=tmp_path / "sheet.png")


def test_only_a_png_is_overwritten(cache, tmp_path, monkeypatch):
    for name, content in {"notes.png": b"my notes", "empty.png": b""}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UsageError, match="is no PNG, so it is left as it is"):
            show_views(cache=cache, out=tmp_path / name)
        assert (tmp_path / name).read_bytes() == content
    (tmp_path / "folder.png").mkdir()
    for name in ("folder.png", "sheet.jpg", "sheet"):
        with pytest.raises(UsageError):
            show_views(cache=cache, out=tmp_path / name)
    show_views(cache=cache, out=tmp_path / "deep/er/sheet.png")
    assert [file.name for file in (tmp_path / "deep/er").iterdir()] == ["sheet.png"]
    before = (tmp_path / "deep/er/sheet.png").read_bytes()

    def fails(self, file, **options):
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device", str(file))

    monkeypatch.setattr(Image.Image, "save", fails)
    with pytest.raises(OSError, match="No space"):
        show_views(cache=cache, out=tmp_path / "deep/er/sheet.png", views=1)
    assert [file.name for file in (tmp_path / "deep/er").iterdir()] == ["sheet.png"]
    assert (tmp_path / "deep/er/sheet.png").read_bytes() == before


def test_views_of_texts_are_told(texts, tmp_path):
    facts = show_views(cache=texts)
    sample = facts["samples"][0]
    plain = sample["views"][0]["tokens"]
    assert plain[0] == "[CLS]" and plain[-1] == "[SEP]" and len(plain) == 24 and sample["views"][0]["chosen"] == []
    assert "".join(plain[1:-1]).replace("Ġ", " ") == sample["text"][:22]
    for view in sample["views"][1:]:
        positions = [item["position"] for item in view["chosen"]]
        assert len(positions) == 3  # 15 % of the 22 tokens between the ends
        assert [item["was"] for item in view["chosen"]] == [plain[at] for at in positions]
        differs = [at for at, token in enumerate(view["tokens"]) if token != plain[at]]
        assert differs and set(differs) <= set(positions)
        assert len(view["neighbours"]) == 3
    assert "[MASK]" in {token for view in sample["views"] for token in view["tokens"]}
    for option in ({"out": tmp_path / "x.png"}, {"img_size": 8}):
        with pytest.raises(UsageError, match="is for images, and this cache is of texts"):
            show_views(cache=texts, **option)


def test_views_of_texts_without_the_texts(texts, monkeypatch):
    told = show_views(cache=texts)["samples"][0]["views"]

    def gone(*_):
        raise SourceError("gone")

    monkeypatch.setattr("pipelines.shown.open_samples", gone)
    facts = show_views(cache=texts)
    assert facts["samples_from"] == "stored inputs" and facts["samples"][0]["text"] is None
    assert facts["samples"][0]["views"] == told


def test_views_are_drawn_one_at_a_time_and_not_larger_than_any_network_needs(cache):
    opened = open_cache(cache)
    reader = opened.split()
    network_input = teacher_input(opened, reader)
    samples = Samples.open(reader, None, network_input)
    shown = show(reader, samples, network_input, 0, VIEWS)
    assert next(shown).inputs["images"].shape == (1, 3, PIXELS, PIXELS)
    with pytest.raises(UsageError, match="not drawn"):
        next(show(reader, samples, ImageInput(size=4097), 0, 1))
