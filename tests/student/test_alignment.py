"""What is not what the teacher saw stops training, each with its own message; unless checks are off."""

import shutil

import numpy as np
import pytest
import torch

from featurecache import inputs, loader
from featurecache.augment.operations.flip import Flip
from featurecache.errors import IdentityError
from featurecache.inputs import TextInput
from pipelines import extract_cache, finish, train_student
from tests.pipelines.altered import image_folder, with_another_pixel

HERE = {"workers": 0, "device": "cpu"}
IMAGES = {"student": "test_resnet", "objective": "align-uniform", "batch_size": 8, "steps": 3, **HERE}
TEXTS = {"student": "bert:1x16", "objective": "align-uniform", "batch_size": 8, "steps": 3, **HERE}
OFF = "--check-inputs off"


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder of images and a cache of it with three views."""
    folder = tmp_path_factory.mktemp("made")
    images = image_folder(folder / "images")
    data = (f"train={images}",)
    finish(extract_cache(teacher="random", data=data, out=folder / "cache", views=3, augment="standard", **HERE))
    return folder


@pytest.fixture
def trained(made, tmp_path):
    """Trains on a copy of the images; the cache is that of the first ones."""
    shutil.copytree(made / "images", tmp_path / "images")

    def train(**options):
        data = (f"train={tmp_path / 'images'}",)
        return finish(train_student(cache=made / "cache", data=data, out=tmp_path / "run", **IMAGES, **options))

    return tmp_path / "images", train


def decoding_otherwise(monkeypatch, key=None):
    """Another decoder: one pixel of every image, or of one, is a little brighter."""
    decode = loader.decode

    def altered(sample, modality):
        image = decode(sample, modality).copy()
        if key in (None, sample.key):
            image[3, 5, 1] ^= 1
        return image

    monkeypatch.setattr(loader, "decode", altered)


def words_of(error):
    return f"{error.value.message} | {error.value.hint}"


@pytest.mark.parametrize("level", ["all", "sample"])
def test_nothing_is_refused_where_all_is_as_it_was(trained, level):
    assert trained[1](check_inputs=level)["digest"]


@pytest.mark.parametrize("level", ["all", "sample"])
def test_a_file_with_one_changed_pixel(trained, level):
    folder, train = trained
    with_another_pixel(folder)
    with pytest.raises(IdentityError) as error:
        train(check_inputs=level)
    assert "its bytes differ" in words_of(error) and "a/04" in words_of(error)
    assert "extract again" in error.value.hint and OFF in error.value.hint


@pytest.mark.parametrize("level", ["all", "sample"])
def test_pixels_of_another_decoder(trained, monkeypatch, level):
    decoding_otherwise(monkeypatch)
    with pytest.raises(IdentityError) as error:
        trained[1](check_inputs=level)
    assert "gives other pixels here" in words_of(error) and "pillow" in words_of(error)
    assert "use the pillow that the cache was made with" in error.value.hint and OFF in error.value.hint


def test_one_image_that_another_decoder_reads_otherwise_is_found_by_all(trained, monkeypatch):
    decoding_otherwise(monkeypatch, "a/04.bmp")
    with pytest.raises(IdentityError, match="'a/04.bmp' has the bytes"):
        trained[1](check_inputs="all")


def test_an_altered_program(trained, monkeypatch):
    monkeypatch.setattr(Flip, "change", lambda *_: None)
    with pytest.raises(IdentityError) as error:
        trained[1](check_inputs="sample")
    assert "the augmentation 'standard' makes other views here" in words_of(error) and OFF in error.value.hint
    assert "the featurecache and pillow" in error.value.hint


def test_an_altered_program_does_not_matter_to_the_plain_view(trained, monkeypatch):
    monkeypatch.setattr(Flip, "change", lambda *_: None)
    assert trained[1](views=1)["digest"]


def test_a_plain_view_that_is_made_otherwise(trained, monkeypatch):
    monkeypatch.setitem(inputs._RESAMPLING, "bilinear", inputs._RESAMPLING["nearest"])
    with pytest.raises(IdentityError) as error:
        trained[1](check_inputs="sample")
    assert "images are resized otherwise here" in words_of(error) and OFF in error.value.hint


def test_with_checks_off_training_goes_on(trained, monkeypatch):
    folder, train = trained
    with_another_pixel(folder)
    decoding_otherwise(monkeypatch)
    monkeypatch.setattr(Flip, "change", lambda *_: None)
    monkeypatch.setitem(inputs._RESAMPLING, "bilinear", inputs._RESAMPLING["nearest"])
    assert train(check_inputs="off")["digest"]


class TestTexts:
    """Their tokens are in the cache; checks are of data that are named."""

    @pytest.fixture
    def texts(self, tmp_path):
        words = np.random.default_rng(2).choice(["red", "green", "blue", "grey"], (24, 4))
        lines = [f"{number},{' '.join(row)}" for number, row in enumerate(words)]
        path = tmp_path / "train.csv"
        path.write_text("\n".join(["name,words", *lines]) + "\n")
        data, columns = (f"train={path}",), {"text_column": "words", "id_column": "name"}
        finish(extract_cache(teacher="random", data=data, out=tmp_path / "cache", **columns, **HERE))

        def train(**options):
            return finish(train_student(cache=tmp_path / "cache", out=tmp_path / "run", **TEXTS, **options))

        return path, data, train

    @pytest.mark.parametrize("level", ["all", "sample"])
    def test_a_letter_is_another(self, texts, level):
        path, data, train = texts
        path.write_text(path.read_text().replace("red", "rod", 1))
        with pytest.raises(IdentityError) as error:
            train(data=data, check_inputs=level)
        assert "its bytes differ" in words_of(error) and OFF in error.value.hint

    @pytest.mark.parametrize("level", ["all", "sample"])
    def test_tokens_of_another_tokenizer(self, texts, monkeypatch, level):
        _, data, train = texts
        read = TextInput.read
        monkeypatch.setattr(TextInput, "read", lambda self, text: [*read(self, text)[:-1], 1])
        with pytest.raises(IdentityError) as error:
            train(data=data, check_inputs=level)
        assert "gives other tokens here" in words_of(error) and "tokenizers" in words_of(error)

    def test_with_checks_off_or_without_data_training_goes_on(self, texts):
        path, data, train = texts
        path.write_text(path.read_text().replace("red", "rod", 1))
        assert train(data=data, check_inputs="off")["digest"]
        path.unlink()
        shutil.rmtree(path.parent / "run")
        assert train()["digest"]
