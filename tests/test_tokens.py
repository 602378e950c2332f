"""Outputs for each token of texts from the teacher to the disk and back: only real tokens, in every view and shard."""

import itertools
import json

import numpy as np
import pytest
import torch
import zarr

from featurecache.augment import TokenAugmentation
from featurecache.draw import draw_views, plan_views
from featurecache.encodings import make_encoding
from featurecache.errors import CorruptCacheError, UnknownNameError, UsageError
from featurecache.extract import extract
from featurecache.plan import more_views, output_names, plan_part
from featurecache.rows import list_rows
from featurecache.store import layout
from featurecache.store.part_reader import PartReader
from featurecache.store.parts import part_from_json
from featurecache.store.reader import open_cache
from featurecache.store.seals import seal
from featurecache.store.verify import Finding, verify
from featurecache.store.writer import CacheWriter, create_cache
from featurecache.store_inputs import plan_inputs, store_inputs, stored_tokens
from featurecache.types import OutputSpec, Reason
from tests.small_caches import Texts
from tests.small_caches import teacher as random_teacher

ROWS, DIM, VIEWS = 150, 6, 3


def texts():
    """Of 1 to 59 bytes; one is empty."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 60, ROWS)
    words = ["".join(map(chr, rng.integers(97, 123, length))) for length in lengths]
    words[70] = "  "
    return Texts({f"key-{number:04d}": word for number, word in enumerate(words)})


MASK = TokenAugmentation(mask_id=256, vocabulary=257, special_ids=(256,), max_length=128, share=0.3)


@pytest.fixture(autouse=True, scope="module")
def _small_shards():
    """32 rows of 128 tokens at most, in inner chunks of 4."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "_MAX_SHARD_BYTES", 32 * 128 * DIM * 4)
        patch.setattr(layout, "_INNER_BYTES", 4 * 128 * DIM * 4)
        yield


def begun(path):
    """Rows, tokens and drawn views; the teacher, and what its part will be."""
    source, teacher = texts(), random_teacher()
    objects = create_cache(path, source={})
    inputs = plan_inputs(source, "train", teacher.input)
    views = plan_views(source, "train", MASK, seed=1, views=(1, VIEWS))
    steps = (list_rows(source, objects, "train"), store_inputs(source, objects, inputs, teacher.input))
    for _ in itertools.chain(*steps):
        pass
    tokens = stored_tokens(objects, inputs, teacher.input)
    for _ in draw_views(source, objects, views, MASK, tokens=tokens):
        pass
    options = {"outputs": ["embedding", "hidden.0"], "encode": {"hidden.0": "float32", "embedding": "float32"}}
    return (
        source,
        teacher,
        objects,
        plan_part(teacher, source, "train", augmentation=MASK, seed=1, views=(0, VIEWS), **options),
    )


def by_hand(reader, source, teacher, row, view):
    """float32 (tokens, dim): what the teacher gives for one text alone."""
    parameters = reader.stored_views.parameters(np.array([row]), np.array([view]))[0]
    ids = teacher.input.show(teacher.input.read(source.texts[source.keys[row]]), parameters)
    return teacher(teacher.input.collate([ids]), ["hidden.0"])["hidden.0"][0]


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    path = tmp_path_factory.mktemp("filled")
    source, teacher, objects, part = begun(path / "cache")
    for _ in extract(teacher, source, objects, part, batch_size=16):
        pass
    seal(objects)
    return path / "cache", source, teacher, part


def test_every_view_of_every_row_reads_back_with_zeros_behind(filled):
    path, source, teacher, part = filled
    reader = open_cache(path).split("train")
    assert part.shard_count == VIEWS * 5
    assert reader.outputs["hidden.0"] == OutputSpec("hidden.0", (DIM,), longest=128)
    draw = np.random.default_rng(1)
    rows = np.delete(np.arange(ROWS), 70)
    for chosen in (draw.permutation(rows)[:40], rows[:3], rows[-1:]):
        views = draw.integers(VIEWS, size=len(chosen))
        found = reader.read(chosen, view=views, outputs=["hidden.0"])["hidden.0"]
        expected = [by_hand(reader, source, teacher, *at) for at in zip(chosen, views, strict=True)]
        assert found.shape == (len(chosen), max(map(len, expected)), DIM) and found.dtype == torch.float32
        assert reader.lengths("hidden.0", chosen, view=views).tolist() == list(map(len, expected))
        for values, wanted in zip(found, expected, strict=True):
            torch.testing.assert_close(values[: len(wanted)], wanted)
            assert (values[len(wanted) :] == 0).all()


def test_gathered_batches_are_those_that_are_read(filled):
    reader = open_cache(filled[0]).split("train")
    draw = np.random.default_rng(2)
    plan = [draw.integers(70, size=count) for count in (9, 2, 30, 30)]
    views = [draw.integers(VIEWS, size=len(rows)) for rows in plan]
    gathered = list(reader.gather(plan, views=views, outputs=["hidden.0", "embedding"]))
    for batch, rows, view in zip(gathered, plan, views, strict=True):
        for name, value in reader.read(rows, view=view, outputs=["hidden.0", "embedding"]).items():
            assert torch.equal(batch[name], value)
    reader.will_need(np.arange(ROWS), view=1, outputs=["hidden.0"])


def test_plain_zarr_finds_the_tokens_and_padding_is_not_stored(filled):
    path, source, teacher, part = filled
    group = zarr.open_group(path, mode="r")[part.prefix]
    start, stop = group["offsets"][2, 40]
    values = group["hidden.0"][2, start:stop]
    reader = open_cache(path).split("train")
    np.testing.assert_allclose(values, by_hand(reader, source, teacher, 40, 2).numpy(), rtol=1e-6)
    lengths = np.diff(group["offsets"][:], axis=2)[..., 0]
    assert lengths[:, 70].tolist() == [0] * VIEWS and not group["valid"][:, 70].any()
    starts = group["offsets"][0, ::32, 0]
    assert (starts == np.arange(0, ROWS, 32) * 128).all()
    stored = sum(file.stat().st_size for file in (path / part.prefix / "hidden.0").rglob("c/*/*/0"))
    chunk = 4 * 128 * DIM * 4
    assert stored < lengths.sum() * DIM * 4 + VIEWS * 5 * (chunk + 8 * 16 + 4)
    assert reader.stored_bytes(["hidden.0"]) == pytest.approx(stored / VIEWS, rel=0.1)


def test_it_verifies(filled):
    objects = open_cache(filled[0]).objects
    assert not [event for event in verify(objects) if isinstance(event, Finding)]


def test_an_interrupted_run_goes_on_to_the_same_bytes(filled, tmp_path):
    source, teacher, objects, part = begun(tmp_path / "cache")
    run = extract(teacher, source, objects, part, batch_size=16)
    for progress in run:
        if progress.done > 250:
            break
    run.close()
    assert 0 < len(list(CacheWriter(objects, part).pending())) < part.shard_count
    for _ in extract(teacher, source, objects, part, batch_size=16):
        pass
    for array in ("hidden.0", "offsets", "embedding"):
        files = [file for file in (filled[0] / part.prefix / array / "c").rglob("*") if file.is_file()]
        assert len(files) == part.shard_count
        for file in files:
            assert (tmp_path / "cache" / file.relative_to(filled[0])).read_bytes() == file.read_bytes()


def test_outputs_of_layers_are_made_only_when_asked_for():
    teacher, source = random_teacher(), texts()
    plain = plan_part(teacher, source, "train")
    assert [item.output.name for item in plain.outputs] == ["embedding", "logits"]
    assert "offsets" not in {array.name for array in plain.arrays}
    named = plan_part(teacher, source, "train", outputs=["hidden.last"], encode={"hidden.last": "float32"})
    assert named.identity["encodings"] == {"hidden.0": "float32"}
    assert {**named.identity, "encodings": 0} == {**plain.identity, "encodings": 0}
    assert output_names(teacher, ["hidden.last", "logits", "hidden.0"]) == ["hidden.0", "logits"]
    for wrong in ("hidden.1", "qkv.last", "qkv.0"):
        with pytest.raises(UnknownNameError):
            plan_part(teacher, source, "train", outputs=[wrong])
    with pytest.raises(UsageError, match=r"hidden\.0 is kept for each token of a text, which int8:row cannot"):
        make_encoding("int8:row", teacher.further[0])


def test_a_text_whose_tokens_are_not_finite_is_invalid_and_padding_does_not_count(tmp_path):
    class Broken(type(random_teacher())):
        def __call__(self, batch, further=()):
            outputs = super().__call__(batch, further)
            values = outputs["hidden.0"].clone()
            values[~batch["mask"]] = torch.nan
            values[(batch["ids"] == self.input.read("!")[0]) & batch["mask"]] = torch.inf
            return {**outputs, "hidden.0": values}

    source = Texts({"a": "one!", "b": "a longer text", "c": "x"})
    teacher = Broken("text", dim=DIM)
    objects = create_cache(tmp_path / "cache", source={})
    part = plan_part(teacher, source, "train", outputs=["hidden.0"])
    for _ in itertools.chain(list_rows(source, objects, "train"), extract(teacher, source, objects, part)):
        pass
    seal(objects)
    reader = open_cache(tmp_path / "cache").split("train")
    assert reader.reasons("hidden.0").tolist() == [Reason.NOT_FINITE, 0, 0]
    assert reader.lengths("hidden.0", [0, 1, 2]).tolist() == [0, 13, 1]
    assert reader.read([0, 2])["hidden.0"].isfinite().all()


@pytest.mark.parametrize(
    "offsets",
    {
        "beyond the view": [32 * 128 * 5, 32 * 128 * 5 + 1],
        "longer than the longest": [0, 129],
        "backwards": [7, 3],
        "below zero": [-5, 2],
        "huge": [2**61, 2**61 + 4],
        "a huge text": [0, 2**61],
    }.items(),
    ids=lambda item: item[0],
)
def test_hostile_offsets_are_refused_before_memory_is_made(filled, monkeypatch, offsets):
    reader = open_cache(filled[0]).split("train")
    name, value = offsets
    monkeypatch.setattr(PartReader, "take", forged(PartReader.take, value))
    for ask in (
        lambda: reader.read([3, 4], outputs=["hidden.0"]),
        lambda: reader.read([3, 4], view=np.array([0, 2]), outputs=["hidden.0"]),
        lambda: list(reader.gather([[3, 4]], outputs=["hidden.0"])),
    ):
        with pytest.raises(CorruptCacheError, match="lead beyond its rows"):
            ask()
    assert name


def forged(take, value):
    """`take` that gives other offsets."""

    def other(self, array, rows, **options):
        found = take(self, array, rows, **options)
        if array.name == "offsets":
            found[1] = value
        return found

    return other


def test_tokens_of_several_parts_are_joined_by_view(filled, tmp_path):
    source, teacher, objects, _ = begun(tmp_path / "cache")
    options = {"outputs": ["embedding", "hidden.0"], "encode": {"hidden.0": "float32", "embedding": "float32"}}
    plain = plan_part(teacher, source, "train", views=(0, 1), **options)
    for each in (plain, more_views(plain, MASK, seed=1, views=(1, VIEWS))):
        for _ in extract(teacher, source, objects, each, batch_size=16):
            pass
    seal(objects)
    joined, whole = (open_cache(path).split("train") for path in (tmp_path / "cache", filled[0]))
    assert joined.views() == VIEWS and list(joined.outputs) == ["embedding", "hidden.0"]
    draw = np.random.default_rng(3)
    for count in (1, 40):
        rows, views = draw.integers(ROWS, size=count), draw.integers(VIEWS, size=count)
        found, expected = (reader.read(rows, view=views, outputs=["hidden.0"]) for reader in (joined, whole))
        assert torch.equal(found["hidden.0"], expected["hidden.0"])
        (gathered,) = joined.gather([rows], views=[views], outputs=["hidden.0"])
        assert torch.equal(gathered["hidden.0"], found["hidden.0"])
        joined.will_need(rows, view=views, outputs=["hidden.0"])


def changed(value, *path, to):
    inner = value
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = to
    return value


@pytest.mark.parametrize(
    ("path", "to"),
    [
        (("outputs", 1, "longest"), 127),
        (("outputs", 1, "longest"), 0),
        (("outputs", 1, "longest"), -1),
        (("outputs", 1, "heads"), "two"),
        (("outputs", 0, "longest"), 128),
        (("outputs", 1, "encoding"), "float16"),
        (("outputs", 1, "shape"), [DIM + 1]),
        (("outputs", 1, "shape"), [1, DIM]),
        (("outputs", 1, "name"), "hidden.1"),
        (("arrays", 2, "name"), "other"),
        (("arrays", 2, "dtype"), "int32"),
        (("arrays", 1, "name"), "hidden.9"),
        (("kind",), "probe"),
    ],
)
def test_part_json_whose_tokens_do_not_fit_is_refused(path, to):
    part = plan_part(
        random_teacher(), texts(), "train", outputs=["embedding", "hidden.0"], encode={"hidden.0": "float32"}
    )
    value = json.loads(json.dumps({**part.to_json(), "facts": {**part.facts, "input": {}, "order": 0}}))
    assert [array["name"] for array in value["arrays"][:3]] == ["embedding", "hidden.0", "offsets"]
    assert part_from_json(value).outputs == part.outputs
    with pytest.raises(CorruptCacheError):
        part_from_json(changed(value, *path, to=to))
