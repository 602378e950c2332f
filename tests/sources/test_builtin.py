"""Data that needs no download: digits, synthetic images and texts, and the first samples of any source."""

import subprocess
import sys

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.neighbors import NearestCentroid

from featurecache.errors import SourceError, UnknownNameError
from featurecache.fingerprint import hash_rows
from featurecache.sources import SOURCES, Digits, Limited, SyntheticImages, SyntheticTexts, decode
from tests.contracts.source_contract import SourceContract


class TestDigits(SourceContract):
    def make_source(self, tmp_path):
        return Digits("test")


class TestSyntheticImages(SourceContract):
    def make_source(self, tmp_path):
        return SyntheticImages(13, classes=3, size=16)


class TestSyntheticTexts(SourceContract):
    def make_source(self, tmp_path):
        return SyntheticTexts(13, classes=5)


class TestLimited(SourceContract):
    def make_source(self, tmp_path):
        return Limited(SyntheticTexts(9), 6)


def test_digits_are_those_of_scikit_learn():
    digits, train, test = load_digits(), Digits("train"), Digits("test")
    assert list(test.keys[:2]) == ["digits/0000", "digits/0005"] and len(train) == 1437 and len(test) == 360
    assert sorted([*train.keys, *test.keys]) == [f"digits/{row:04d}" for row in range(1797)]
    for source in (train, test):
        for index in (0, 7, len(source) - 1):
            row = int(source.keys[index][-4:])
            grey = np.round(digits.images[row] * 255 / 16).astype(np.uint8)
            assert np.array_equal(decode(source[index], "image"), np.repeat(grey[:, :, None], 3, axis=2))
            assert source[index].label == digits.target[row]


def test_digits_refusals(monkeypatch):
    with pytest.raises(SourceError, match="no split 'val'"):
        Digits("val")
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(SourceError, match=r"pip install 'featurecache\[demo\]'"):
        Digits("train")


def test_synthetic_content_is_a_function_of_seed_and_index():
    for make in (SyntheticImages, SyntheticTexts):
        first, longer, other = make(5), make(50), make(5, seed=1)
        assert [longer[index] for index in range(5)] == list(first.iter(0, 5))
        assert all(first[index].encoded != other[index].encoded for index in range(5))
        assert len({sample.encoded for sample in longer.iter(0, 50)}) == 50
        assert longer.labels.tolist() == [index % 4 for index in range(50)]


def test_synthetic_content_is_the_same_on_every_machine():
    """Known sums: they change only together with every cache made from this data."""
    assert int(decode(SyntheticImages(3)[2], "image").astype(int).sum()) == 373676
    assert (
        decode(SyntheticTexts(3)[2], "text")
        == "The zaleti of at of bafile in all wusefi nopuno gogogo puhufi with and puhufi."
    )


def test_synthetic_images_can_be_learned():
    train, test = SyntheticImages(80, classes=6), SyntheticImages(60, classes=6, seed=1)

    def features(source):
        images = np.stack([decode(sample, "image") for sample in source.iter(0, len(source))])
        return images.reshape(len(source), -1).astype(float)

    model = NearestCentroid().fit(features(train), train.labels)
    assert model.score(features(test), test.labels) > 0.9


def test_words_of_a_class_are_its_own():
    source = SyntheticTexts(400, classes=4)
    words = [set() for _ in range(4)]
    for sample in source.iter(0, 400):
        words[sample.label] |= set(decode(sample, "text").lower().rstrip(".").split())
    common = set.intersection(*words)
    assert all(len(own - common) == 12 for own in words) and len(common) == 15
    assert not (words[0] & words[1]) - common


@pytest.mark.parametrize("make", [SyntheticImages, SyntheticTexts])
def test_synthetic_needs_samples(make):
    with pytest.raises(SourceError):
        make(0)


def test_limited():
    whole = SyntheticTexts(9)
    few = Limited(whole, 4)
    assert few.keys == whole.keys[:4] and few.class_names == whole.class_names
    assert few.fingerprint() == hash_rows(whole.keys[:4], [len(whole[index].encoded) for index in range(4)])
    assert Limited(whole, 99).fingerprint() == whole.fingerprint() and len(Limited(whole, 99)) == 9
    assert list(few.iter(2, 9)) == [whole[2], whole[3]] and few[-1] == whole[3]
    with pytest.raises(SourceError, match="leaves no sample"):
        Limited(whole, 0)


def test_the_table_of_sources():
    assert sorted(SOURCES) == [
        *("digits", "image-folder", "remote-tars", "synthetic", "synthetic-text", "tabular", "tar-shards", "text-files")
    ]
    assert SOURCES.get("digits") is Digits and SOURCES.get("synthetic") is SyntheticImages
    with pytest.raises(UnknownNameError, match="did you mean 'digits'"):
        SOURCES.get("digit")


def test_importing_sources_is_light():
    heavy = "{'torch', 'sklearn', 'webdataset', 'transformers', 'pyarrow', 'datasets', 'huggingface_hub', 'httpx2'}"
    code = f"import sys, featurecache.sources; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
