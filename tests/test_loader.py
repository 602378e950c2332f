import io

import numpy as np
import pytest
import torch
from PIL import Image

from featurecache.errors import BadSampleError, SourceError
from featurecache.fingerprint import content_hash, hash_pixels
from featurecache.inputs import ImageInput
from featurecache.loader import load
from featurecache.sources.decode import decode
from featurecache.sources.synthetic import SyntheticImages, SyntheticTexts
from featurecache.teachers import load_teacher
from featurecache.types import Reason, Sample
from tests.bad_data import images_with_a_truncated_one, texts_with_bad_ones

BATCHES = [np.arange(3, 7), np.array([9, 0, 4]), np.array([2])]


@pytest.mark.parametrize("modality", ["image", "text"])
@pytest.mark.parametrize("workers", [0, 2])
def test_each_batch_is_its_samples_in_the_order_given(modality, workers):
    source = SyntheticImages(10) if modality == "image" else SyntheticTexts(10)
    network_input = load_teacher("random", modality=modality).input
    loaded = list(load(source, network_input, BATCHES, workers=workers, hash_inputs=True))
    assert len(loaded) == len(BATCHES)
    for batch, rows in zip(loaded, BATCHES, strict=True):
        decoded = [decode(source[row], modality) for row in rows.tolist()]
        items = [network_input.prepare(data) for data in decoded]
        assert batch.rows.tolist() == rows.tolist() and not batch.reasons.any()
        assert batch.content_hashes.tolist() == [content_hash(source[row].encoded) for row in rows.tolist()]
        hashed = decoded if modality == "image" else items
        assert batch.input_hashes.tolist() == [hash_pixels(item) for item in hashed]
        expected = network_input.collate(items)
        assert batch.inputs.keys() == expected.keys()
        assert all(torch.equal(batch.inputs[name], tensor) for name, tensor in expected.items())


def test_bad_images_are_left_out_with_their_reason(tmp_path):
    source = images_with_a_truncated_one(tmp_path)
    network_input = load_teacher("random").input
    (batch,) = load(source, network_input, [np.arange(len(source))], hash_inputs=True)
    (bad,) = np.flatnonzero(batch.reasons).tolist()
    assert source.keys[bad].endswith("2-broken.jpg") and batch.reasons[bad] == Reason.CORRUPT_IMAGE
    assert batch.input_hashes[bad] == 0 and batch.content_hashes[bad] == content_hash(source[bad].encoded)
    assert batch.valid.tolist() == [row for row in range(len(source)) if row != bad]
    assert len(batch.inputs["images"]) == len(source) - 1


def test_bad_texts_are_left_out_with_their_reason():
    (batch,) = load(texts_with_bad_ones(), load_teacher("random", modality="text").input, [np.arange(6)])
    assert batch.reasons.tolist() == [0, Reason.NOT_UTF8, 0, Reason.EMPTY_TEXT, Reason.UNREADABLE, 0]
    assert len(batch.inputs["ids"]) == 3 and not batch.input_hashes.any()
    (nothing,) = load(texts_with_bad_ones(), load_teacher("random", modality="text").input, [np.array([1, 3])])
    assert dict(nothing.inputs) == {} and nothing.valid.size == 0


def test_an_image_too_thin_to_resize():
    thin = np.zeros((60_000, 1, 3), np.uint8)
    with pytest.raises(BadSampleError) as error:
        ImageInput(size=224).prepare(thin)
    assert error.value.reason is Reason.IMAGE_TOO_LARGE

    class One(SyntheticImages):
        def __getitem__(self, index):

            stream = io.BytesIO()
            Image.fromarray(thin).save(stream, "PNG")
            return Sample(self.keys[index], stream.getvalue())

    (batch,) = load(One(1), ImageInput(size=224), [np.arange(1)])
    assert batch.reasons.tolist() == [Reason.IMAGE_TOO_LARGE] and dict(batch.inputs) == {}


class Gone(SyntheticTexts):
    """A source that cannot be read any more after its first samples, as one on the web may not."""

    def __getitem__(self, index):
        if index > 6:
            raise SourceError("the server is gone", hint="run it again")
        return super().__getitem__(index)

    def iter(self, start, stop):
        return map(self.__getitem__, range(start, stop))


@pytest.mark.parametrize("workers", [0, 1])
def test_what_a_source_says_arrives_with_its_hint(workers):
    loading = load(Gone(10), load_teacher("random", modality="text").input, BATCHES, workers=workers)
    next(loading)
    with pytest.raises(SourceError) as error:
        next(loading)
    assert (error.value.message, error.value.hint) == ("the server is gone", "run it again")
