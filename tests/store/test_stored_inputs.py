"""Inputs read from the cache: what the data set would have given, in any order, and nothing that was never stored."""

import io
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from featurecache.augment import TokenAugmentation
from featurecache.errors import CorruptCacheError, SourceError, UsageError
from featurecache.fingerprint import hash_pixels
from featurecache.frames import Frames
from featurecache.inputs import ImageInput, TextInput
from featurecache.loader import load
from featurecache.rows import list_rows
from featurecache.sources.base import Source
from featurecache.store.layout import REASON, VALID, PartSpec
from featurecache.store.part_reader import PartReader
from featurecache.store.parts import find_parts
from featurecache.store.reader import open_cache
from featurecache.store.stored_inputs import ListedSource, StoredInputs
from featurecache.store.writer import CacheWriter, create_cache
from featurecache.store_inputs import plan_inputs, store_inputs
from featurecache.teachers.random_projection import byte_tokenizer_json
from featurecache.types import ArraySpec, Reason
from tests.bad_data import images_with_a_truncated_one, texts_with_bad_ones
from tests.sample_inputs import Pictures, Words, listed, png, special_tokenizer_json, text_input

QUIET = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None)
SIZE, STUDENT = 64, ImageInput(size=32)
MEAN_BOUND, BATCH = 2.0, 12
"""Grey levels by which resizing twice may differ from resizing once, as the mean over a picture."""


def stored(path, source, network_input, size=None):
    objects = listed(path, source)
    for _ in store_inputs(source, objects, plan_inputs(source, "train", network_input, size), network_input):
        pass
    return open_cache(objects.root).split().stored_inputs()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    source = Pictures.of_all_shapes()
    return source, stored(tmp_path_factory.mktemp("pictures"), source, STUDENT, SIZE)


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    source = Words(1100)
    return source, stored(tmp_path_factory.mktemp("words"), source, text_input())


def masks(max_length=32):
    special = (256, 257, 258, 259)
    return TokenAugmentation(mask_id=259, vocabulary=260, special_ids=special, max_length=max_length, share=0.4)


def assert_same(ours, theirs):
    assert ours.frames is theirs.frames and ours.inputs.keys() == theirs.inputs.keys()
    np.testing.assert_array_equal(ours.reasons, theirs.reasons)
    np.testing.assert_array_equal(ours.input_hashes, theirs.input_hashes)
    for name, tensor in theirs.inputs.items():
        assert ours.inputs[name].dtype == tensor.dtype and torch.equal(ours.inputs[name], tensor)


def boxes_of(rng, count):
    """float32 (count, 5): boxes of a fifth to all of a side, a few plain, and a parameter of something else."""
    extent = rng.uniform(0.2, 1, (count, 2))
    boxes = np.concatenate([rng.uniform(0, 1 - extent), extent, rng.uniform(0, 1, (count, 1))], axis=1)
    boxes[rng.uniform(size=count) < 0.2, :4] = np.nan
    return boxes.astype(np.float32)


@given(
    rows=st.lists(st.integers(0, 1099), min_size=1, max_size=20, unique=True),
    views=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    max_length=st.integers(3, 32),
)
@QUIET
def test_texts_are_byte_for_byte_those_of_the_data_set(words, rows, views, max_length):
    source, inputs = words
    network_input = TextInput(special_tokenizer_json(), max_length=max_length)
    tokens = [np.array(network_input.read(source.contents[row])) for row in rows]
    keys = [source.keys[row] for row in rows]
    drawn = np.stack([masks(max_length).draw(keys, tokens, view=view, seed=3) for view in views], axis=1)
    plan = [Frames.of(np.array(rows), drawn), Frames.plain(np.array(rows))]
    for ours, theirs in zip(inputs.load(plan, network_input), load(source, network_input, plan), strict=True):
        assert_same(ours, theirs)


def test_bad_texts_are_left_out_as_they_are_of_the_data_set(tmp_path):
    source, network_input = texts_with_bad_ones(), text_input()
    inputs = stored(tmp_path, source, network_input)
    plan = [Frames.plain(np.array([5, 1, 0, 3, 4])), Frames.plain(np.array([1, 3]))]
    for ours, theirs in zip(inputs.load(plan, network_input), load(source, network_input, plan), strict=True):
        assert_same(ours, theirs)
    assert dict(ours.inputs) == {} and ours.reasons.tolist() == [Reason.NOT_UTF8, Reason.EMPTY_TEXT]


@pytest.mark.parametrize("crop_pct", [0.875, 1.0])
@pytest.mark.parametrize("crop_mode", ["center", "squash"])
def test_the_plain_view_is_close_to_that_of_the_data_set(pictures, crop_pct, crop_mode):
    source, inputs = pictures
    network_input = replace(STUDENT, crop_pct=crop_pct, crop_mode=crop_mode)
    plan = [Frames.plain(np.arange(BATCH))]
    (ours,), (theirs,) = inputs.load(plan, network_input), load(source, network_input, plan)
    assert ours.inputs["images"].shape == (BATCH, 3, 32, 32) and ours.inputs["images"].dtype == torch.uint8
    assert_close(ours, theirs)


def test_boxes_are_close_to_those_of_the_data_set(pictures):
    source, inputs = pictures
    drawn = boxes_of(np.random.default_rng(1), 3 * BATCH).reshape(BATCH, 3, 5)
    plan = [Frames.of(np.arange(BATCH)[::-1].copy(), drawn)]
    (ours,), (theirs,) = inputs.load(plan, STUDENT), load(source, STUDENT, plan)
    assert_close(ours, theirs)


def assert_close(ours, theirs):
    difference = ours.inputs["images"].int() - theirs.inputs["images"].int()
    assert difference.abs().float().mean((1, 2, 3)).max() <= MEAN_BOUND
    # and far closer than pictures are to each other
    others = ours.inputs["images"].int() - theirs.inputs["images"].roll(1, 0).int()
    assert others.abs().float().mean((1, 2, 3)).min() > 3 * MEAN_BOUND
    assert ours.reasons.tolist() == theirs.reasons.tolist() and ours.frames is theirs.frames


def test_the_whole_frame_at_its_own_size_is_what_pillow_makes_of_the_original(pictures):
    source, inputs = pictures
    (loaded,) = inputs.load([Frames.of(np.array([4]), np.float32([[[0, 0, 1, 1]]]))], ImageInput(size=SIZE))
    with Image.open(io.BytesIO(source.contents[4])) as image:
        expected = np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(loaded.inputs["images"][0].permute(1, 2, 0).numpy(), expected)


@given(st.permutations(range(BATCH)), st.integers(1, BATCH))
@QUIET
def test_images_are_the_same_in_any_batch(pictures, order, together):
    _, inputs = pictures
    drawn = boxes_of(np.random.default_rng(2), 2 * BATCH).reshape(BATCH, 2, 5)
    (every,) = inputs.load([Frames.of(np.arange(BATCH), drawn)], STUDENT)
    expected = every.inputs["images"].reshape(BATCH, 2, 3, 32, 32)
    batches = [np.array(order[at : at + together]) for at in range(0, BATCH, together)]
    loaded = inputs.load([Frames.of(rows, drawn[rows]) for rows in batches], STUDENT)
    for rows, batch in zip(batches, loaded, strict=True):
        assert torch.equal(batch.inputs["images"], expected[rows].flatten(0, 1))


def test_a_partner_is_read_though_nobody_asked_for_it(pictures):
    _, inputs = pictures
    drawn = boxes_of(np.random.default_rng(3), 4).reshape(2, 2, 5)
    frames = Frames.of(np.array([3, 5]), drawn, np.array([[5, -1], [9, 3]]), drawn)
    (loaded,) = inputs.load([frames], STUDENT)
    assert len(frames) == 4 and len(loaded.inputs["images"]) == 7 and loaded.rows.tolist() == [3, 5, 9]
    for frame, image in enumerate(loaded.inputs["images"]):
        row = frames.samples[frames.shows[frame]]
        (alone,) = inputs.load([Frames.of(np.array([row]), frames.parameters[frame][None, None])], STUDENT)
        assert torch.equal(alone.inputs["images"][0], image)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("bytes_at_once", [1, 2**30])
def test_all_at_once_is_within_one_grey_level_of_one_by_one(pictures, interpolation, bytes_at_once, monkeypatch):
    monkeypatch.setattr("featurecache.store.stored_inputs._BYTES_AT_ONCE", bytes_at_once)
    _, inputs = pictures
    rng = np.random.default_rng(4)
    samples, shows = np.array([7, 2, 11, 0]), np.array([3, 0, 0, 1, 3])  # 11 is bad, say
    boxes = np.nan_to_num(boxes_of(rng, 5)[:, :4].astype(np.float64), nan=0.5)
    options = samples, shows, boxes, replace(STUDENT, interpolation=interpolation), torch.device("cpu")
    together, alone = inputs._resized_together(*options)["images"], inputs._resized_one_by_one(*options)["images"]
    assert together.shape == alone.shape == (5, 3, 32, 32)
    assert (together.int() - alone.int()).abs().max() <= 1


def test_frames_held_on_a_device_are_those_of_the_files(pictures, monkeypatch):
    monkeypatch.setattr("featurecache.store.stored_inputs._CHUNK_BYTES", 3 * SIZE * SIZE * 3)
    _, inputs = pictures
    held = inputs.held_on(torch.device("cpu"), np.array([7, 2, 11, 0]))
    boxes = np.nan_to_num(boxes_of(np.random.default_rng(4), 5)[:, :4].astype(np.float64), nan=0.5)
    for samples in (np.array([7, 2, 0]), np.array([7, 2, 1])):  # row 1 is not held: another's partner
        options = samples, np.array([2, 0, 0, 1, 2]), boxes, STUDENT, torch.device("cpu")
        ours, theirs = held._resized_together(*options), inputs._resized_together(*options)
        assert torch.equal(ours["images"], theirs["images"])
    assert held.is_held and not inputs.is_held and not inputs.held_on(torch.device("cpu"), np.zeros(0, int)).is_held


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_is_within_one_grey_level(pictures):
    _, inputs = pictures
    drawn = boxes_of(np.random.default_rng(5), 3 * BATCH).reshape(BATCH, 3, 5)
    plan = [Frames.of(np.arange(BATCH), drawn), Frames.plain(np.array([3]))]
    for gpu, cpu in zip(inputs.load(plan, STUDENT, device="cuda"), inputs.load(plan, STUDENT), strict=True):
        assert gpu.inputs["images"].is_cuda
        assert (gpu.inputs["images"].cpu().int() - cpu.inputs["images"].int()).abs().max() <= 1


def test_bad_images_are_left_out(tmp_path):
    source = images_with_a_truncated_one(tmp_path / "images")
    inputs = stored(tmp_path / "cache", source, STUDENT, SIZE)
    plan = [Frames.plain(np.arange(len(source))[::-1].copy())]
    (ours,), (theirs,) = inputs.load(plan, STUDENT), load(source, STUDENT, plan)
    assert ours.reasons.tolist() == theirs.reasons.tolist() and ours.valid.tolist() == theirs.valid.tolist()
    assert len(ours.inputs["images"]) == 4
    (bad,) = np.flatnonzero(ours.reasons)
    (nothing,) = inputs.load([Frames.plain(ours.rows[[bad]])], STUDENT)
    assert dict(nothing.inputs) == {} and nothing.reasons.tolist() == [Reason.CORRUPT_IMAGE]


def test_an_image_too_thin_for_the_plain_view(tmp_path):
    source = Pictures([png(np.zeros((60_000, 1, 3), np.uint8)), png(np.full((9, 9, 3), 7, np.uint8))])
    inputs = stored(tmp_path, source, ImageInput(), 16)
    box = np.float32([[[np.nan] * 4, [0, 0, 1, 1]], [[np.nan] * 4, [0, 0, 1, 1]]])
    plan = [Frames.of(np.arange(2), box), Frames.of(np.arange(2), box[:, 1:])]
    for ours, theirs in zip(inputs.load(plan, ImageInput()), load(source, ImageInput(), plan), strict=True):
        assert_same(ours, theirs)  # pictures of one colour: resizing them twice changes nothing
        assert ours.reasons.tolist() == [Reason.IMAGE_TOO_LARGE, 0]  # also where a box of it alone is shown


def test_which_networks_can_be_shown_them(pictures, words):
    images, texts = pictures[1], words[1]
    assert images.accepts(STUDENT) and images.accepts(ImageInput(size=500)) and not images.accepts(text_input())
    assert [texts.accepts(text_input(length)) for length in (3, 32, 33)] == [True, True, False]
    assert not texts.accepts(STUDENT) and not texts.accepts(TextInput(byte_tokenizer_json(), max_length=32))
    with pytest.raises(UsageError, match="holds other inputs than the network takes"):
        next(texts.load([Frames.plain(np.arange(2))], text_input(33)))


def test_hashes_and_bytes(pictures, words):
    source, inputs = words
    hashes = inputs.input_hashes()
    assert [int(hashes[row]) for row in (0, 1099)] == [
        hash_pixels(text_input().read(source.contents[row])) for row in (0, 1099)
    ]
    assert pictures[1].stored_bytes == 12 * (SIZE * SIZE * 3 + 1 + 1 + 8)
    pictures[1].will_need(np.array([11, 0]))
    assert inputs.modality == "text" and inputs.size == 32


def test_what_is_not_complete_is_not_there(tmp_path):
    source, network_input = Words(1100), text_input()
    objects = listed(tmp_path, source)
    assert open_cache(tmp_path).split().stored_inputs() is None
    run = store_inputs(source, objects, plan_inputs(source, "train", network_input), network_input)
    next(run)
    run.close()
    assert open_cache(tmp_path).split().stored_inputs() is None
    list(store_inputs(source, objects, plan_inputs(source, "train", network_input), network_input))
    assert open_cache(tmp_path).split().stored_inputs() is not None


def test_a_listed_source_has_keys_and_labels_and_no_samples(tmp_path):
    source = Pictures.of_all_shapes(4)
    for _ in list_rows(source, create_cache(tmp_path, source={}), "train"):
        pass
    found = ListedSource(open_cache(tmp_path).split())
    assert isinstance(found, Source) and len(found) == 4 and list(found.keys) == source.keys
    assert found.labels.tolist() == [0, 1, 0, 1] and found.class_names == ("even", "odd")
    assert (found.modality, found.fingerprint()) == ("image", source.fingerprint())
    for read in (lambda: found[0], lambda: found.iter(0, 1), lambda: pickle.loads(pickle.dumps(found))[3]):
        with pytest.raises(SourceError, match="inputs only, not the samples") as error:
            read()
        assert "--data" in error.value.hint


def hostile_texts(objects, source, *, tokens=(1, 2, 3), offsets=None, dtype="uint16", **changes):
    """The part "inputs" over two texts, laid out by hand: its StoredInputs."""
    what = text_input().to_json()
    part = PartSpec(
        name="inputs",
        kind="inputs",
        split="train",
        rows=2,
        identity={"kind": "inputs"},
        arrays=(
            ArraySpec("tokens", dtype, longest=32),
            ArraySpec("offsets", "int64", (2,), ("bound",)),
            VALID,
            REASON,
            ArraySpec("input_hash", "uint64"),
        ),
        facts={"input": what, "proof": "of what is made of a fixed image"},
    )
    rows = {
        "tokens": np.array(tokens, dtype),
        "offsets": np.array([[0, 2], [2, 3]] if offsets is None else offsets, np.int64),
        "valid": np.ones(2, np.uint8),
        "reason": np.zeros(2, np.uint8),
        "input_hash": np.zeros(2, np.uint64),
    }
    CacheWriter(objects, part).write(part.shard(0, 0), {**rows, **changes})
    return StoredInputs(PartReader(objects, part), PartReader(objects, find_parts(objects, "train")[1]))


LIES = {
    "ids": ({"tokens": (1, 260, 3)}, "tokens that its tokenizer does not have"),
    "ids below 0": ({"tokens": (1, -1, 3), "dtype": "int32"}, "tokens that its tokenizer does not have"),
    "offsets beyond": ({"offsets": [[0, 2], [2**40, 2**40 + 1]]}, "lead beyond its rows"),
    "offsets below": ({"offsets": [[-2, 0], [2, 3]]}, "lead beyond its rows"),
    "offsets back": ({"offsets": [[2, 0], [2, 3]]}, "lead beyond its rows"),
    "longer than the longest": ({"offsets": [[0, 33], [2, 3]]}, "lead beyond its rows"),
    "reasons": ({"reason": np.array([200, 0], np.uint8), "valid": np.array([0, 1], np.uint8)}, "neither that nor why"),
    "valid and bad": ({"reason": np.array([2, 0], np.uint8)}, "neither that nor why"),
    "neither": ({"valid": np.array([0, 1], np.uint8)}, "neither that nor why"),
}


@pytest.mark.parametrize("lie", LIES)
def test_texts_that_a_stranger_made_up(tmp_path, lie):
    options, message = LIES[lie]
    source = Words(2)
    inputs = hostile_texts(listed(tmp_path, source), source, **options)
    with pytest.raises(CorruptCacheError, match=message):
        next(inputs.load([Frames.plain(np.arange(2))], text_input()))
    assert text_input().vocabulary_size == 260


WHAT = {"kind": "image", "size": 16, "interpolation": "bicubic"}


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        "image",
        {},
        {"kind": "sound"},
        {**WHAT, "size": 4097},
        {**WHAT, "size": 0},
        {**WHAT, "size": -16},
        {**WHAT, "size": "16"},
        {**WHAT, "size": 16.0},
        {**WHAT, "size": True},
        {**WHAT, "size": 17},
        {**WHAT, "interpolation": "sharp"},
        {"kind": "image", "size": 16},
        {"kind": "text", "tokenizer_sha256": "0" * 64, "max_length": 32},
        {"kind": "text", "tokenizer_sha256": 5, "max_length": 32},
        {"kind": "text", "tokenizer_sha256": "0" * 64},
    ],
    ids=str,
)
def test_a_part_that_says_nonsense_of_itself(tmp_path, value):
    source = Pictures.of_all_shapes(2)
    objects = listed(tmp_path, source)
    part = plan_inputs(source, "train", ImageInput(), 16)
    rows = PartReader(objects, find_parts(objects, "train")[0])
    StoredInputs(PartReader(objects, part), rows)
    with pytest.raises(CorruptCacheError, match="train/inputs does not hold inputs as it should"):
        StoredInputs(PartReader(objects, replace(part, facts={"input": value})), rows)


def test_a_part_with_other_arrays_or_rows(tmp_path):
    source = Pictures.of_all_shapes(2)
    objects = listed(tmp_path, source)
    part = plan_inputs(source, "train", ImageInput(), 16)
    listing = find_parts(objects, "train")[0]
    huge = ArraySpec("image", "uint8", (4097, 4097, 3), ("y", "x", "channel"))
    others = [
        (replace(part, arrays=part.arrays[1:]), listing),
        (
            replace(part, arrays=(ArraySpec("image", "float32", (16, 16, 3), ("y", "x", "channel")), *part.arrays[1:])),
            listing,
        ),
        (replace(part, arrays=(huge, *part.arrays[1:]), facts={"input": {**WHAT, "size": 4097}}), listing),
        (replace(part, kind="views"), listing),
        (replace(part, views=(0, 1)), listing),
        (part, replace(listing, arrays=listing.arrays[:-1])),
        (part, replace(listing, facts={**listing.facts, "modality": "text"})),
    ]
    for inputs, rows in others:
        reader = PartReader(objects, listing)
        reader.part = rows
        with pytest.raises(CorruptCacheError, match="does not hold inputs as it should"):
            StoredInputs(PartReader(objects, inputs), reader)


def test_an_image_that_is_there_has_pixels(tmp_path):
    source = Pictures([b"no image", png(np.zeros((5, 5, 3), np.uint8))])
    objects = listed(tmp_path, source)
    part = plan_inputs(source, "train", ImageInput(), 4)
    rows = {
        "image": np.zeros((2, 4, 4, 3), np.uint8),
        "valid": np.ones(2, np.uint8),
        "reason": np.zeros(2, np.uint8),
        "input_hash": np.zeros(2, np.uint64),
    }
    CacheWriter(objects, part).write(part.shard(0, 0), rows)
    inputs = open_cache(tmp_path).split().stored_inputs()
    assert len(next(inputs.load([Frames.plain(np.array([1]))], STUDENT)).inputs["images"]) == 1
    with pytest.raises(CorruptCacheError, match="that it has no pixels"):
        next(inputs.load([Frames.plain(np.array([0]))], STUDENT))
