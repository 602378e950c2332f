"""Class folders of images."""

import numpy as np
import pytest
from PIL import Image

from featurecache.errors import SourceError
from featurecache.sources import ImageFolder, decode
from featurecache.types import NO_LABEL, Reason
from tests.contracts.source_contract import SourceContract
from tests.sources.make_data import paint_images, picture

NAMES = ["dog/2.png", "cat/1.png", "cat/deep/0.bmp", "cat/10.PNG", "bird/a.webp", "dog/b.tiff", "dog/c.gif"]


class TestImageFolder(SourceContract):
    def make_source(self, tmp_path):
        return ImageFolder(paint_images(tmp_path / "images", NAMES))


def test_order_and_labels(tmp_path):
    source = ImageFolder(paint_images(tmp_path, NAMES))
    assert list(source.keys) == sorted(NAMES)
    assert source.class_names == ("bird", "cat", "dog")
    assert source.labels.tolist() == [0, 1, 1, 1, 2, 2, 2]
    assert source[2].encoded == (tmp_path / source.keys[2]).read_bytes()
    expected = np.asarray(Image.open(tmp_path / "dog/2.png").convert("RGB"))
    assert np.array_equal(decode(source[list(source.keys).index("dog/2.png")], "image"), expected)


def test_a_flat_folder_has_no_labels(tmp_path):
    source = ImageFolder(paint_images(tmp_path, ["b.png", "a.jpg"]))
    assert list(source.keys) == ["a.jpg", "b.png"]
    assert source.class_names == () and source.labels.tolist() == [NO_LABEL] * 2 and source[0].label is None


def test_other_and_hidden_files_are_left_out(tmp_path):
    paint_images(tmp_path, ["cat/a.png", ".cache/b.png", "cat/._a.png"])
    (tmp_path / "cat/notes.txt").write_text("no image")
    (tmp_path / "empty").mkdir()
    assert list(ImageFolder(tmp_path).keys) == ["cat/a.png"]
    assert ImageFolder(tmp_path).class_names == ("cat",)


def test_given_class_names(tmp_path):
    paint_images(tmp_path, ["cat/a.png", "dog/b.png"])
    source = ImageFolder(tmp_path, class_names=["dog", "cow", "cat"])
    assert source.class_names == ("dog", "cow", "cat") and source.labels.tolist() == [2, 0]
    with pytest.raises(SourceError, match=r"dog/b.png: the label 'dog' is not among the 1 class names \(cat\)"):
        ImageFolder(tmp_path, class_names=["cat"])


@pytest.mark.parametrize("is_folder", [False, True], ids=["file", "folder"])
def test_a_link_out_of_the_root_is_refused(tmp_path, is_folder):
    root = paint_images(tmp_path / "root", ["cat/a.png"])
    outside = paint_images(tmp_path / "outside", ["secret.png"])
    (root / ("out" if is_folder else "cat/out.png")).symlink_to(outside if is_folder else outside / "secret.png")
    with pytest.raises(SourceError, match="is a link out of the data folder"):
        ImageFolder(root)


def test_links_inside_the_root(tmp_path):
    root = paint_images(tmp_path / "root", ["cat/a.png"])
    (root / "cat/loop").symlink_to(root)
    (root / "cat/b.png").symlink_to("a.png")
    (root / "cat/gone.png").symlink_to("missing.png")
    (root / "cat/self.png").symlink_to("self.png")
    source = ImageFolder(root)
    assert list(source.keys) == ["cat/a.png", "cat/b.png", "cat/gone.png", "cat/self.png"]
    assert source[0].encoded == source[1].encoded
    assert [sample.problem for sample in source.iter(1, 4)] == [Reason.VALID, Reason.UNREADABLE, Reason.UNREADABLE]


def test_a_root_that_is_a_link_is_fine(tmp_path):
    (tmp_path / "link").symlink_to(paint_images(tmp_path / "root", ["cat/a.png"]))
    assert list(ImageFolder(tmp_path / "link").keys) == ["cat/a.png"]


def test_a_file_that_goes_away_is_a_bad_sample(tmp_path):
    source = ImageFolder(paint_images(tmp_path, ["cat/a.png", "cat/b.png"]))
    (tmp_path / "cat/a.png").unlink()
    assert source[0].problem is Reason.UNREADABLE and source[1].problem is Reason.VALID


def test_fingerprint_follows_size_and_name_only(tmp_path):
    for folder, names in {
        "a": ["x/1.png", "y/2.png"],
        "b": ["x/1.png", "y/2.png"],
        "c": ["x/1.png", "y/3.png"],
    }.items():
        paint_images(tmp_path / folder, names)
    first = ImageFolder(tmp_path / "a").fingerprint()
    assert ImageFolder(tmp_path / "b", class_names=["y", "x"]).fingerprint() == first
    assert ImageFolder(tmp_path / "c").fingerprint() != first
    with (tmp_path / "b/x/1.png").open("ab") as stream:
        stream.write(b"!")
    assert ImageFolder(tmp_path / "b").fingerprint() != first


@pytest.mark.parametrize("make", [False, True], ids=["absent", "empty"])
def test_no_images(tmp_path, make):
    if make:
        (tmp_path / "data").mkdir()
    with pytest.raises(SourceError):
        ImageFolder(tmp_path / "data")


def test_a_name_that_is_not_text_is_refused(tmp_path):
    (tmp_path / "bad\udcff.png").write_bytes(picture(0))
    with pytest.raises(SourceError, match="not valid UTF-8"):
        ImageFolder(tmp_path)
