import numpy as np
import pytest

from featurecache.errors import IdentityError, IncompleteError
from featurecache.fingerprint import content_hash
from featurecache.rows import ListedContents, list_rows
from featurecache.sources.synthetic import SyntheticImages, SyntheticTexts
from featurecache.store.reader import open_cache
from featurecache.store.seals import seal
from featurecache.store.writer import create_cache
from tests.bad_data import Encoded, images_with_a_truncated_one, texts_with_bad_ones


@pytest.mark.parametrize("kind", ["texts", "images", "folder", "bad"])
def test_rows_say_what_the_source_holds(tmp_path, kind):
    source = {
        "texts": lambda: SyntheticTexts(1100),
        "images": lambda: SyntheticImages(20),
        "folder": lambda: images_with_a_truncated_one(tmp_path / "images"),
        "bad": texts_with_bad_ones,
    }[kind]()
    objects = create_cache(tmp_path / "cache", source={})
    shards = list(list_rows(source, objects, "train"))
    assert [shard.rows for shard in shards] == ([1024, 76] if kind == "texts" else [len(source)])
    reader = open_cache(tmp_path / "cache").split()
    assert reader.keys == list(source.keys) and reader.class_names == tuple(source.class_names)
    assert np.array_equal(reader.labels, source.labels) and reader.fingerprint == source.fingerprint()
    expected = [content_hash(sample.encoded) for sample in source.iter(0, len(source))]
    assert reader.content_hashes.tolist() == expected
    assert np.array_equal(reader.rows_of(source.keys[::-1]), np.arange(len(source))[::-1])
    assert list(list_rows(source, objects, "train")) == []
    assert ListedContents(source, objects, "train")(np.arange(len(source))).tolist() == expected


def test_listing_goes_on_where_it_was_interrupted(tmp_path):
    source = SyntheticTexts(2100)
    objects = create_cache(tmp_path / "cache", source={})
    listing = list_rows(source, objects, "train")
    assert next(listing).index == 0
    listing.close()
    with pytest.raises(IncompleteError):
        ListedContents(source, objects, "train")(np.arange(len(source)))
    assert [shard.index for shard in list_rows(source, objects, "train")] == [1, 2]
    assert open_cache(tmp_path / "cache").split().keys == source.keys


def test_other_samples_are_refused(tmp_path):
    objects = create_cache(tmp_path / "cache", source={})
    list(list_rows(Encoded([b"a", b"b"]), objects, "train"))
    before = sorted(objects.root.rglob("*"))
    for other in (Encoded([b"a"]), Encoded([b"a", b"bb"])):
        with pytest.raises(IdentityError) as error:
            list(list_rows(other, objects, "train"))
        assert "fingerprint" in [name for name, _, _ in error.value.fields]
    assert sorted(objects.root.rglob("*")) == before


def test_a_split_may_be_added_to_a_sealed_cache(tmp_path):
    objects = create_cache(tmp_path / "cache", source={})
    list(list_rows(Encoded([b"a", b"b"]), objects, "train"))
    seal(objects)
    list(list_rows(Encoded([b"c"]), objects, "test"))
    assert ListedContents(Encoded([b"c"]), objects, "test")(np.arange(1)).tolist() == [content_hash(b"c")]
    seal(objects)
    assert open_cache(tmp_path / "cache").splits == ["test", "train"]


def test_nothing_is_listed(tmp_path):
    with pytest.raises(IncompleteError, match="rows of split 'train' are not listed yet"):
        ListedContents(Encoded([b"a"]), create_cache(tmp_path, source={}), "train")
