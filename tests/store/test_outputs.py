"""What a split gives by name: outputs of teachers in their encodings, and heads of probes on top."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from featurecache.errors import CorruptCacheError
from featurecache.store.layout import REASON, VALID, EncodedOutput, PartSpec
from featurecache.store.reader import open_cache
from featurecache.types import ArraySpec, OutputSpec, TopLogits
from tests.store.small_parts import add_probe, teacher_part, write_part, write_rows


def test_sparse_logits(objects):
    write_rows(objects)
    arrays = (
        ArraySpec("logits.values", "float16", (2,), ("rank",)),
        ArraySpec("logits.indices", "uint16", (2,), ("rank",)),
        ArraySpec("logits.logsumexp", "float32", (1,), ("temperature",)),
        VALID,
        REASON,
    )
    part = teacher_part(arrays=arrays)
    part = PartSpec(
        **{
            name: getattr(part, name)
            for name in ("name", "kind", "split", "rows", "identity", "arrays", "views", "facts")
        },
        outputs=(EncodedOutput(OutputSpec("logits", (2**16,)), "topk:2@3"),),
    )
    model = write_part(objects, part)
    found = open_cache(objects.root).split().read([3, 1])["logits"]
    assert isinstance(found, TopLogits) and (found.size, found.temperatures) == (2**16, (3.0,))
    assert np.array_equal(found.values, model["logits.values"][0, [3, 1]])
    assert np.array_equal(found.indices, model["logits.indices"][0, [3, 1]])
    assert np.array_equal(found.logsumexp, model["logits.logsumexp"][0, [3, 1]])


def test_arrays_that_are_not_those_of_the_encoding(objects):
    write_rows(objects)
    write_part(objects, teacher_part(arrays=(ArraySpec("embedding", "int64", (4,), ("feature",)), VALID, REASON)))
    with pytest.raises(CorruptCacheError, match="has not the arrays of float16"):
        open_cache(objects.root).split().read([0])


def test_the_first_teacher_has_the_plain_name_and_a_later_one_its_own(objects):
    write_rows(objects)
    later = teacher_part(name="a", recipe="two")
    second = write_part(objects, replace(later, facts={**later.facts, "order": 1}), seed=1)
    first = write_part(objects, teacher_part(name="b", recipe="one"))
    reader = open_cache(objects.root).split()
    assert set(reader.outputs) == {"embedding", "a/embedding"}
    found = reader.read([4])
    assert np.array_equal(found["embedding"], first["embedding"][0, [4]])
    assert np.array_equal(found["a/embedding"], second["embedding"][0, [4]])
    assert (reader.teacher_part("a/embedding").name, reader.output_part("embedding").name) == ("a", "b")


def test_a_probe_is_its_head_on_the_embedding_and_the_latest_wins(objects):
    write_rows(objects)
    write_rows(objects, split="test")
    model = write_part(objects, teacher_part())["embedding"][0].astype(np.float64)
    on_test = write_part(objects, teacher_part(split="test"), seed=3)["embedding"][0].astype(np.float64)
    newest, bias = add_probe(objects, "probe", 2)
    older, older_bias = add_probe(objects, "zz-older", 1)
    add_probe(objects, "of-another-teacher", 9, teacher="id-other")
    rows = [9, 0, 0, 5]
    reader = open_cache(objects.root).split()
    found = reader.read(rows)
    assert set(found) == {"embedding", "logits", "zz-older/logits"}
    assert reader.output_part("logits").name == "probe" and reader.teacher_part("logits").name == "vit"
    np.testing.assert_allclose(found["logits"].numpy(), model[rows] @ newest.T + bias, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        found["zz-older/logits"].numpy(), model[rows] @ older.T + older_bias, rtol=1e-5, atol=1e-5
    )
    assert reader.valid(["logits"]).all() and not reader.reasons("logits").any()
    other = open_cache(objects.root).split("test").read([3], outputs=["logits"])["logits"]
    np.testing.assert_allclose(other.numpy(), on_test[[3]] @ newest.T + bias, rtol=1e-5, atol=1e-5)


def test_a_probe_whose_input_this_split_does_not_hold(objects):
    write_rows(objects)
    part = teacher_part()
    kept = {
        name: getattr(part, name) for name in ("name", "kind", "split", "rows", "identity", "arrays", "views", "facts")
    }
    write_part(objects, PartSpec(**kept, outputs=(EncodedOutput(OutputSpec("tokens", (4,)), "float16"),)))
    add_probe(objects, "probe", 0)
    assert list(open_cache(objects.root).split().outputs) == ["tokens"]


@pytest.mark.parametrize("weight", [torch.zeros(3, 5), torch.zeros(2, 4), torch.zeros(3)])
def test_a_head_that_does_not_fit(objects, weight):
    write_rows(objects)
    write_part(objects, teacher_part())
    add_probe(objects, "probe", 0, weight=weight)
    with pytest.raises(CorruptCacheError, match="the head of train/probe does not fit the embedding"):
        open_cache(objects.root).split().read([0], outputs=["logits"])


def test_a_head_that_is_no_safetensors(objects):
    write_rows(objects)
    write_part(objects, teacher_part())
    add_probe(objects, "probe", 0)
    path = objects.root / "train/probe/assets/head.safetensors"
    path.chmod(0o644)
    path.write_bytes(b"\x80\x04pickle?")
    with pytest.raises(CorruptCacheError, match="head.safetensors is not what train/probe/part.json names"):
        open_cache(objects.root).split().read([0], outputs=["logits"])


@pytest.mark.parametrize("how", ["read", "gather"])
def test_classes_beyond_those_there_are(objects, how):
    write_rows(objects)
    arrays = (
        ArraySpec("logits.values", "float16", (2,), ("rank",)),
        ArraySpec("logits.indices", "uint16", (2,), ("rank",)),
        ArraySpec("logits.logsumexp", "float32", (1,), ("temperature",)),
    )
    part = teacher_part(arrays=(*arrays, VALID, REASON))
    write_part(objects, replace(part, outputs=(EncodedOutput(OutputSpec("logits", (5,)), "topk:2@3"),)))
    reader = open_cache(objects.root).split()
    with pytest.raises(
        CorruptCacheError, match=r"train/vit cannot be decoded: logits\.indices has numbers beyond its 5"
    ):
        reader.read([3], device="meta") if how == "read" else list(reader.gather([[3]], device="meta"))


def test_outputs_by_teacher_and_a_probe_with_the_teacher_of_its_embedding(objects):
    write_rows(objects)
    later = teacher_part(name="b.second", recipe="two")
    write_part(objects, replace(later, facts={**later.facts, "order": 1}))
    more = teacher_part(name="a-more", recipe="one", views=(1, 2))
    write_part(objects, replace(more, facts={**more.facts, "order": 2}))
    write_part(objects, teacher_part(name="c-first", recipe="one"))
    add_probe(objects, "newer", 4, teacher="id-two")
    add_probe(objects, "older", 3, teacher="id-two")
    assert open_cache(objects.root).split().by_teacher == {
        "c-first": {"embedding": "embedding"},
        "b.second": {"embedding": "b.second/embedding", "logits": "logits"},
    }
    add_probe(objects, "newest", 5, teacher="id-one")
    assert open_cache(objects.root).split().by_teacher == {
        "c-first": {"embedding": "embedding", "logits": "logits"},
        "b.second": {"embedding": "b.second/embedding", "logits": "newer/logits"},
    }


def test_whether_an_output_is_sparse(objects):
    write_rows(objects)
    write_part(objects, teacher_part())
    add_probe(objects, "probe", 1)
    reader = open_cache(objects.root).split()
    assert not reader.is_sparse("logits") and not reader.is_sparse("embedding")
