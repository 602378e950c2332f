"""Outputs held on a device: to the last bit what the files give, in every encoding."""

import numpy as np
import pytest
import torch

from featurecache.errors import CorruptCacheError, UsageError
from featurecache.store import held as holding
from featurecache.store.layout import REASON, VALID, EncodedOutput, PartSpec
from featurecache.store.reader import open_cache
from featurecache.store.writer import create_cache
from featurecache.types import ArraySpec, OutputSpec
from tests.small_caches import Texts, sentences, write_cache
from tests.store.small_parts import add_probe, rows_identity, teacher_part, write_part, write_rows
from tests.store.test_gather import assert_same

ROWS, VIEWS = 1500, 3


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """A float16 embedding in three views, a probe on it, and sparse logits."""
    objects = create_cache(tmp_path_factory.mktemp("held"), source={})
    write_rows(objects, rows=ROWS)
    write_part(objects, teacher_part(ROWS, views=(0, VIEWS)))
    arrays = (
        ArraySpec("logits.values", "float16", (2,), ("rank",)),
        ArraySpec("logits.indices", "uint16", (2,), ("rank",)),
        ArraySpec("logits.logsumexp", "float32", (1,), ("temperature",)),
    )
    sparse = PartSpec(
        name="wide",
        kind="teacher",
        split="train",
        rows=ROWS,
        identity={"kind": "teacher", "data": rows_identity(ROWS), "recipe": "wide"},
        arrays=(*arrays, VALID, REASON),
        views=(0, VIEWS),
        outputs=(EncodedOutput(OutputSpec("logits", (2**16,)), "topk:2@3"),),
        facts={"teacher": "wide", "teacher_id": "id-wide", "input": {}},
    )
    write_part(objects, sparse)
    add_probe(objects, "probe", 1, rows=ROWS)
    return open_cache(objects.root).split()


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    monkeypatch.setattr(holding, "_CHUNK_BYTES", 1000)


def some(count, seed=0, of=ROWS):
    return np.sort(np.random.default_rng(seed).permutation(of)[:count])


@pytest.mark.parametrize("outputs", [None, ["embedding"], ["logits"], ["wide/logits", "embedding"], []])
def test_what_is_held_is_what_is_read(reader, outputs):
    rows, draw = some(500), np.random.default_rng(1)
    held = reader.held(rows, views=VIEWS, outputs=outputs, device="cpu")
    plan = [draw.choice(rows, size) for size in (7, 64, 0, 7)]
    views = [draw.integers(0, VIEWS, len(batch)) for batch in plan]
    batches = held.gather(plan, views=views)
    for batch, shown, found in zip(plan, views, batches, strict=True):
        assert_same(found, reader.read(batch, view=shown, outputs=outputs))
    for found, batch in zip(held.gather(plan), plan, strict=True):
        assert_same(found, reader.read(batch, outputs=outputs))


@pytest.mark.parametrize("encoding", ["float32", "float16", "int8:row", "topk:2", "topk:5@1"])
def test_every_encoding(tmp_path, encoding):
    encode = {"logits": encoding} if encoding.startswith("topk") else {"embedding": encoding, "logits": encoding}
    reader = write_cache(tmp_path, Texts(sentences(60)), encode=encode).split("train")
    rows = some(40, of=60)
    held = reader.held(rows, device="cpu")
    assert_same(held.read(rows[::-1].copy()), reader.read(rows[::-1]))


def test_it_takes_as_many_bytes_as_are_stored(reader):
    rows = some(100)
    held = reader.held(rows, views=2, outputs=["embedding", "logits"], device="cpu")
    assert held.stored_bytes == 2 * 100 * 4 * 2 == 2 * reader.stored_bytes(["embedding"]) * 100 // ROWS


@pytest.mark.parametrize(("row", "view"), [(1, 0), (ROWS - 1, 0), (2, 1), (2, -1)])
def test_what_is_not_held_is_refused(reader, row, view):
    held = reader.held(np.array([2, 5]), device="cpu", outputs=["embedding"])
    held.read(np.array([5, 2, 2]))
    with pytest.raises(UsageError, match="only 2 rows in 1 views are held on cpu"):
        held.read(np.array([2, row]), view=np.array([0, view]))


def test_rows_of_different_lengths_are_not_held(reader, monkeypatch):
    assert reader.is_even() and reader.is_even(["embedding"])
    ragged = ArraySpec("embedding", "float16", longest=4)
    column = reader._column("embedding")
    monkeypatch.setattr(column.encoding, "arrays", (ragged,))
    assert not reader.is_even(["embedding"])
    with pytest.raises(UsageError, match="differ in length"):
        reader.held(np.array([2]), device="cpu", outputs=["embedding"])


def test_damage_is_found_while_loading(tmp_path):
    cache = write_cache(tmp_path, Texts(sentences(60)), encode={"logits": "topk:2"})
    (path,) = (tmp_path / "train").glob("*/logits.indices/c/0/0/0")
    path.chmod(0o644)
    path.write_bytes(b"\xff\xff" + path.read_bytes()[2:])
    with pytest.raises(CorruptCacheError, match="not what was committed"):
        cache.split("train").held(np.arange(60), device="cpu")
    with pytest.raises(CorruptCacheError, match="cannot be decoded"):
        cache.split("train", trust=True).held(np.arange(60), device="cpu")


def test_sixteen_bits_without_a_sign_are_chosen_as_they_are():
    values = torch.tensor([0, 1, 2**15, 2**16 - 1]).to(torch.uint16)
    assert holding._select(values, torch.tensor([3, 2, 3])).tolist() == [2**16 - 1, 2**15, 2**16 - 1]
