"""Writing the part "inputs": every sample as it should be, resumed, and refused where it is another."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
import tokenizers
import zarr
from PIL import Image

from featurecache.errors import IdentityError, IncompleteError, UsageError
from featurecache.fingerprint import hash_pixels
from featurecache.inputs import ImageInput, TextInput
from featurecache.rows import rows_identity
from featurecache.store.claims import Claims
from featurecache.store.layout import PartSpec
from featurecache.store.part_reader import PartReader
from featurecache.store.parts import find_parts, read_part
from featurecache.store.reader import open_cache
from featurecache.store.seals import seal
from featurecache.store.survey import Finding
from featurecache.store.verify import verify
from featurecache.store.writer import CacheWriter, create_cache
from featurecache.store_inputs import plan_inputs, store_inputs
from featurecache.types import ArraySpec, Reason
from tests.bad_data import images_with_a_truncated_one, texts_with_bad_ones
from tests.sample_inputs import Pictures, Words, listed, special_tokenizer_json, text_input


def store(objects, source, network_input, size=None, **options):
    part = plan_inputs(source, "train", network_input, size)
    return part, list(store_inputs(source, objects, part, network_input, **options))


def written(objects, name="inputs"):
    """Arrays of a part as Zarr reads them."""
    group = zarr.open_group(objects.root, mode="r")[f"train/{name}"]
    return {array.name: group[array.name][:] for array in read_part(objects, f"train/{name}").arrays}


@pytest.mark.parametrize("workers", [0, 2])
def test_images_are_whole_frames_of_one_size(tmp_path, workers):
    source = Pictures.of_all_shapes()
    objects = listed(tmp_path, source)
    part, shards = store(objects, source, ImageInput(), 40, workers=workers)
    assert [shard.rows for shard in shards] == [12]
    arrays = written(objects)
    assert arrays["image"].shape == (12, 40, 40, 3) and not arrays["reason"].any() and (arrays["valid"] == 1).all()
    for row, sample in enumerate(source.iter(0, 12)):
        with Image.open(io.BytesIO(sample.encoded)) as image:
            expected = np.asarray(image.resize((40, 40), Image.Resampling.BICUBIC))
            assert arrays["input_hash"][row] == hash_pixels(np.asarray(image))
        np.testing.assert_array_equal(arrays["image"][row], expected)
    what = {"kind": "image", "size": 40, "interpolation": "bicubic"}
    assert part.identity == {"format": 1, "kind": "inputs", "data": rows_identity(source), "input": what}
    assert part.facts["input"] == what and list(store_inputs(source, objects, part, ImageInput())) == []


def test_what_the_network_takes_does_not_change_the_frames():
    source = Pictures.of_all_shapes(2)
    one, other = (plan_inputs(source, "train", ImageInput(size=size, crop_pct=1.0), 40) for size in (32, 64))
    assert one == other


def test_a_bad_image_is_zeros_with_its_reason(tmp_path):
    source = images_with_a_truncated_one(tmp_path / "images")
    objects = listed(tmp_path / "cache", source)
    _, _ = store(objects, source, ImageInput(), 24)
    arrays = written(objects)
    bad = int(np.flatnonzero(arrays["valid"] == 0)[0])
    assert source.keys[bad].endswith("2-broken.jpg") and arrays["valid"].sum() == 4
    assert arrays["reason"].tolist() == [Reason.CORRUPT_IMAGE if row == bad else 0 for row in range(5)]
    assert not arrays["image"][bad].any() and arrays["input_hash"][bad] == 0
    assert all(arrays["image"][row].any() for row in range(5) if row != bad)


@pytest.mark.parametrize("workers", [0, 2])
def test_texts_are_their_tokens(tmp_path, workers):
    source, network_input = Words(1100), text_input()
    objects = listed(tmp_path, source)
    part, shards = store(objects, source, network_input, workers=workers)
    assert [shard.rows for shard in shards] == [1024, 76]
    assert part.array("tokens") == ArraySpec("tokens", "uint16", longest=32)
    arrays = written(objects)
    for row, text in enumerate(source.contents):
        expected = network_input.tokenizer.encode(text).ids
        start, stop = arrays["offsets"][row]
        assert arrays["tokens"][start:stop].tolist() == expected and 2 < len(expected) <= 32
        assert arrays["input_hash"][row] == hash_pixels(expected)
    assert arrays["offsets"][0, 0] == 0 and arrays["offsets"][1024, 0] == 1024 * 32
    assert part.facts["input"] == network_input.to_json() == part.identity["input"]
    assert objects.get("train/inputs/assets/tokenizer.json") == network_input.tokenizer_json.encode()
    seal(objects)
    assert [found for found in verify(objects) if isinstance(found, Finding)] == []


def test_bad_texts_have_no_tokens(tmp_path):
    source, network_input = texts_with_bad_ones(), text_input()
    objects = listed(tmp_path, source)
    store(objects, source, network_input)
    arrays = written(objects)
    lengths = np.diff(arrays["offsets"], axis=1)[:, 0]
    assert arrays["reason"].tolist() == [0, Reason.NOT_UTF8, 0, Reason.EMPTY_TEXT, Reason.UNREADABLE, 0]
    assert lengths.tolist() == [14, 0, 9, 0, 0, 14] and arrays["valid"].tolist() == [1, 0, 1, 0, 0, 1]
    assert (arrays["offsets"][1:, 0] == arrays["offsets"][:-1, 1]).all()


def test_ids_above_65535_and_gaps_between_them(tmp_path):
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 70_000, "[UNK]": 5}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    source, network_input = texts_with_bad_ones(), TextInput(tokenizer.to_str(), max_length=8)
    source.contents = [b"a b", b"b", b"c", b"a", b"b b a", b"b a"]
    objects = listed(tmp_path, source)
    part, _ = store(objects, source, network_input)
    assert part.array("tokens").dtype == "int32"
    assert written(objects)["tokens"][:10].tolist() == [0, 70_000, 70_000, 5, 0, 70_000, 70_000, 0, 70_000, 0]


def test_storing_goes_on_where_it_was_stopped(tmp_path):
    source, network_input = Words(2100), text_input()
    objects = listed(tmp_path, source)
    part = plan_inputs(source, "train", network_input)
    run = store_inputs(source, objects, part, network_input)
    assert next(run).index == 0
    run.close()
    assert list((objects.root / "_tmp").iterdir()) == [] and not list((objects.root / "_claims").rglob("*.json"))
    assert [shard.index for shard in store_inputs(source, objects, part, network_input)] == [1, 2]
    whole = listed(tmp_path / "whole", source)
    store(whole, source, network_input)
    for name, values in written(objects).items():
        np.testing.assert_array_equal(values, written(whole)[name])


def test_what_another_run_is_at_work_on_comes_last(tmp_path):
    source, network_input = Words(2100), text_input()
    objects = listed(tmp_path, source)
    part = plan_inputs(source, "train", network_input)
    with Claims(objects, part) as others:
        assert others.take(part.shard(0, 0))
        run = store_inputs(source, objects, part, network_input)
        assert [shard.index for shard in run] == [1, 2, 0]


def test_a_sample_that_was_changed_is_refused(tmp_path):
    source = Words(300)  # more than a batch, so that a shard was begun
    objects = listed(tmp_path, source)
    source.contents[280] = source.contents[280][:-1] + "y"
    with pytest.raises(IdentityError, match="the bytes of sample 'text-280' are not those the cache lists"):
        store(objects, source, text_input())
    assert not PartReader(objects, find_parts(objects, "train")[0]).records
    assert list((objects.root / "_tmp").iterdir()) == []


def test_what_is_not_listed_cannot_be_stored(tmp_path):
    source = Pictures.of_all_shapes(2)
    objects = create_cache(tmp_path, source={})
    with pytest.raises(IncompleteError, match="rows of split 'train' are not listed yet"):
        store(objects, source, ImageInput(), 24)


def test_rows_of_older_caches_do_not_know_the_sizes_of_images(tmp_path):
    source = Pictures.of_all_shapes(2)
    objects = create_cache(tmp_path, source={})
    rows = PartSpec(
        name="rows",
        kind="rows",
        split="train",
        rows=2,
        identity=rows_identity(source),
        arrays=(ArraySpec("content_hash", "uint64"),),
        facts={"modality": "image", "class_names": []},
    )
    CacheWriter(objects, rows)
    with pytest.raises(UsageError, match="does not know how large its images are"):
        store(objects, source, ImageInput(), 24)


def test_another_pillow_or_tokenizers_does_not_go_on(tmp_path):
    source, network_input = Words(3), text_input()
    objects = listed(tmp_path, source)
    part = plan_inputs(source, "train", network_input)
    CacheWriter(objects, replace(part, facts={**part.facts, "proof": "of other versions"}))
    with pytest.raises(IdentityError, match="prepared otherwise"):
        store(objects, source, network_input)


def test_names_that_are_taken():
    source = Words(2)
    names = [plan_inputs(source, "train", text_input(), taken=taken).name for taken in ((), {"inputs"}, ["rows"])]
    assert names == ["inputs", "inputs-2", "inputs"]
    assert plan_inputs(source, "train", text_input(), taken=("inputs", "inputs-2", "inputs-4")).name == "inputs-3"


def test_a_second_size_beside_the_first(tmp_path):
    source = Pictures.of_all_shapes(3)
    objects = listed(tmp_path, source)
    first, _ = store(objects, source, ImageInput(), 24)
    with pytest.raises(IdentityError, match="was made from something else"):
        store(objects, source, ImageInput(), 32)
    second = plan_inputs(source, "train", ImageInput(), 32, taken=[first.name])
    assert len(list(store_inputs(source, objects, second, ImageInput()))) == 1
    assert open_cache(objects.root).split().stored_inputs().size == 32
    # the same inputs are found again under the name that they have
    assert list(store_inputs(source, objects, plan_inputs(source, "train", ImageInput(), 32), ImageInput())) == []


@pytest.mark.parametrize("size", [None, 0, -5, 4097])
def test_sizes_that_cannot_be(size):
    with pytest.raises(UsageError, match=f"images cannot be kept at {size} pixels a side"):
        plan_inputs(Pictures.of_all_shapes(1), "train", ImageInput(), size)


def test_what_does_not_fit():
    with pytest.raises(UsageError, match="texts are kept as tokens"):
        plan_inputs(Words(1), "train", text_input(), 160)
    for source, network_input in ((Words(1), ImageInput()), (Pictures.of_all_shapes(1), text_input())):
        with pytest.raises(UsageError, match="the network takes"):
            plan_inputs(source, "train", network_input, 24)


def test_the_tokenizer_of_these_tests_puts_tokens_at_both_ends():
    ids = TextInput(special_tokenizer_json(), max_length=4).read("abcdef")
    names = json.loads(special_tokenizer_json())["added_tokens"]
    by_name = {token["content"]: token["id"] for token in names}
    assert len(ids) == 4 and (ids[0], ids[-1]) == (by_name["[CLS]"], by_name["[SEP]"])
