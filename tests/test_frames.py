"""Frames: each sample decoded once, and every frame of the right sample with the right parameters."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from featurecache.frames import Frames


def test_the_plain_view_of_samples():
    frames = Frames.plain(np.array([7, 3, 5]))
    assert len(frames) == 3
    assert frames.samples.tolist() == [7, 3, 5] and frames.shows.tolist() == [0, 1, 2]
    assert frames.parameters.shape == (3, 0) and frames.partners.tolist() == [-1, -1, -1]


def test_partners_are_decoded_once_and_stand_behind():
    samples = np.array([4, 9])
    parameters = np.arange(12, dtype=np.float32).reshape(2, 3, 2)
    partners = np.array([[9, -1, 2], [2, 4, 9]])
    of_partners = 100 + parameters
    frames = Frames.of(samples, parameters, partners, of_partners)
    assert len(frames) == 6
    assert frames.samples.tolist() == [4, 9, 2]
    assert frames.shows.tolist() == [0, 0, 0, 1, 1, 1, 1, 2, 2, 0, 1]
    assert frames.partners.tolist() == [6, -1, 7, 8, 9, 10]
    assert frames.parameters[:6].tolist() == parameters.reshape(6, 2).tolist()
    assert frames.parameters[6:].tolist() == [[100, 101], [104, 105], [106, 107], [108, 109], [110, 111]]


@st.composite
def batches(draw):
    samples = draw(st.lists(st.integers(0, 30), min_size=1, max_size=8, unique=True))
    shape = (len(samples), draw(st.integers(1, 4)))
    return np.array(samples), draw(arrays.arrays(np.int64, shape, elements=st.integers(-1, 30)))


@given(batches())
def test_every_frame_is_of_its_sample_and_its_partner_of_its_own(batch):
    samples, partners = batch
    parameters = np.arange(partners.size, dtype=np.float32).reshape(*partners.shape, 1)
    frames = Frames.of(samples, parameters, partners, parameters + 1000)
    shown = frames.samples[frames.shows]
    assert len(set(frames.samples.tolist())) == frames.samples.size
    assert set(frames.samples.tolist()) == set(samples.tolist()) | set(partners[partners >= 0].tolist())
    assert frames.samples[: samples.size].tolist() == samples.tolist()
    assert shown[: len(frames)].tolist() == np.repeat(samples, partners.shape[1]).tolist()
    for at, (partner, frame) in enumerate(zip(partners.reshape(-1), frames.partners, strict=True)):
        assert (frame < 0) == (partner < 0)
        if partner >= 0:
            assert frame >= len(frames) and shown[frame] == partner and frames.parameters[frame] == 1000 + at
