"""What every source must do, whatever it reads from."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from featurecache.errors import BadSampleError
from featurecache.fingerprint import hash_rows
from featurecache.sources.base import Source
from featurecache.sources.decode import decode
from featurecache.types import NO_LABEL


class SourceContract:
    """Subclass it and say how to make the source; each call with another folder makes the same data there."""

    valid: int | None = None
    """How many samples decode; None for all of them."""

    def make_source(self, tmp_path: Path) -> Source:
        raise NotImplementedError

    @pytest.fixture
    def source(self, tmp_path: Path) -> Source:
        return self.make_source(tmp_path)

    def test_lists_agree_in_length(self, source):
        assert len(source) == len(source.keys) == len(source.labels) > 0

    def test_keys_are_unique_text(self, source):
        assert len(set(source.keys)) == len(source)
        assert all(key and key.encode().decode() == key for key in source.keys)

    def test_labels_index_the_class_names(self, source):
        assert source.labels.dtype == np.int64
        assert len(set(source.class_names)) == len(source.class_names)
        assert all(label == NO_LABEL or 0 <= label < len(source.class_names) for label in source.labels)

    def test_samples_agree_with_the_lists(self, source):
        for index in range(len(source)):
            sample = source[index]
            assert sample.key == source.keys[index]
            assert (NO_LABEL if sample.label is None else sample.label) == source.labels[index]

    def test_random_and_sequential_access_agree(self, source):
        start, stop = len(source) // 3, len(source)
        assert list(source.iter(start, stop)) == [source[index] for index in reversed(range(start, stop))][::-1]
        assert list(source.iter(1, 1)) == []

    def test_index_beyond_the_end(self, source):
        with pytest.raises(IndexError):
            source[len(source)]

    def test_a_pickled_copy_is_the_same(self, source):
        source[0]  # handles are open when workers start
        copy = pickle.loads(pickle.dumps(source))
        assert list(copy.iter(0, len(copy))) == list(source.iter(0, len(source)))
        assert (copy.keys, copy.class_names, copy.modality) == (source.keys, source.class_names, source.modality)
        assert copy.fingerprint() == source.fingerprint()

    def test_fingerprint_is_of_keys_and_sizes(self, source):
        sizes = [len(source[index].encoded) for index in range(len(source))]
        assert source.fingerprint() == hash_rows(source.keys, sizes)
        assert source.fingerprint() != hash_rows(source.keys, [*sizes[:-1], sizes[-1] + 1])
        assert source.fingerprint() != hash_rows([*source.keys[:-1], "another"], sizes)

    def test_fingerprint_is_the_same_elsewhere_and_later(self, source, tmp_path):
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        copy = self.make_source(elsewhere)
        for path in elsewhere.rglob("*"):
            os.utime(path, (1, 1))
        assert copy.fingerprint() == source.fingerprint()
        assert list(copy.iter(0, len(copy))) == list(source.iter(0, len(source)))

    def test_samples_decode(self, source):
        decoded = []
        for sample in source.iter(0, len(source)):
            try:
                decoded.append(decode(sample, source.modality))
            except BadSampleError:
                assert self.valid is not None
        assert len(decoded) == (len(source) if self.valid is None else self.valid)
        for data in decoded:
            if source.modality == "text":
                assert isinstance(data, str)
            else:
                assert data.dtype == np.uint8 and data.ndim == 3 and data.shape[2] == 3
