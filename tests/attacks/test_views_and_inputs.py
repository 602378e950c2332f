"""Parts of kind "views" and "inputs" that ask for too much, lead elsewhere, or do not fit what stands beside them."""

import contextlib
import shutil
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch

from featurecache.errors import CorruptCacheError, FeatureCacheError, IncompleteError
from featurecache.store.objects import LocalObjects
from featurecache.store.parts import read_part
from featurecache.store.reader import open_cache
from featurecache.store.writer import CacheWriter
from featurecache.types import ArraySpec
from tests.attacks.hostile import MASK, MEGABYTE, TOKENS, Attack, change, check, forge, read_all, reseal
from tests.attacks.reading import described, findings
from tests.store.small_parts import rows_identity, values_of

ROWS, VIEWS, MORE, INPUTS, TEACHER = (
    f"train/{name}/part.json" for name in ("rows", "views.1", "views.3", "inputs", "vit.v1")
)
CROP = {"name": "crop", "scale": [0.5, 1.0], "ratio": [1.0, 1.0]}
WIDE = ArraySpec("view", "float32", (len(MASK.parameters) + 2,), ("parameter",))
WHOLE = ArraySpec("view", "int64", (len(MASK.parameters),), ("parameter",))


def fact(part, *path, to):
    """Another value among the facts, sealed where that can be."""

    def build(root):
        change(root, part, "facts", *path, to=to)
        with contextlib.suppress(FeatureCacheError):
            reseal(root)

    return build


def mask(**changes):
    return fact(VIEWS, "augmentation", to={**MASK.to_json(), **changes})


def images(*operations, **changes):
    """An augmentation of images in place of the one of texts."""
    value = {"name": "a", "version": 1, "modality": "image", "operations": list(operations), **changes}
    return fact(VIEWS, "augmentation", to=value)


def part_of(key):
    return key.split("/")[1]


def other(part, **fields):
    """Another PartSpec over the same values, sealed."""
    return lambda root: forge(root, part_of(part), lambda spec, values: replace(spec, **fields))


def array(part, name, to, new=np.asarray):
    """Another array, of other values, sealed; `new` is given the old ones, (views, rows, *shape)."""

    def make(spec, values):
        values[to.name] = new(values[name])
        return replace(spec, arrays=tuple(to if item.name == name else item for item in spec.arrays))

    return lambda root: forge(root, part_of(part), make)


def numbers(part, name, at, to):
    """Some numbers replaced, at (view slot, row, ...), sealed."""

    def make(spec, values):
        values[name] = values[name].copy()
        values[name][at] = to
        return spec

    return lambda root: forge(root, part_of(part), make)


def elsewhere(part, views):
    """The values of a part in other views."""

    def make(spec, values):
        for name in values:
            values[name] = np.repeat(values[name][:1], views[1] - views[0], axis=0)
        return replace(spec, views=views)

    return lambda root: forge(root, part_of(part), make)


def overlapping(root):
    """A third part of the same teacher, over views that the second has, and one more."""
    objects = LocalObjects(root)
    spec = read_part(objects, "train/vit.v1")
    spec = replace(spec, name="vit.v2", views=(2, 5), identity={**spec.identity, "views": [2, 5]})
    writer = CacheWriter(objects, spec)
    for shard in writer.pending():
        writer.write(shard, values_of(spec, shard, 5))
    reseal(root)


def deep(depth):
    value = "x"
    for _ in range(depth):
        value = [value]
    return value


def widened(values):
    return np.pad(values, [(0, 0), (0, 0), (0, 2)])


AUGMENTATIONS = {
    "huge": mask(special_ids=list(range(2**17))),
    "deep": mask(name=deep(40)),
    "as deep as may be": mask(name=deep(25)),
    "a list": fact(VIEWS, "augmentation", to=[]),
    "text": fact(VIEWS, "augmentation", to="mask"),
    "nothing": fact(VIEWS, "augmentation", to=None),
    "of sounds": mask(modality="audio"),
    "an unknown option": mask(evil="os.system"),
    "a name that is a number": mask(name=7),
    "a name with control characters": mask(name="\x1b[2J"),
    "version 2**50": mask(version=2**50),
    "2**50 tokens": mask(max_length=2**50),
    "a vocabulary of 2**50": mask(vocabulary=2**50),
    "a share of 1e308": mask(share=1e308),
    "a mask beyond the vocabulary": mask(mask_id=TOKENS),
    "no ordinary token": mask(special_ids=list(range(TOKENS))),
    "images over texts": images(CROP),
    "an unknown operation": images({"name": "exec"}),
    "an operation without a name": images({}),
    "100,000 operations": images(*[{"name": "flip"}] * 100_000),
    "200,000 effects": images({"name": "choice", "effects": ["rotate"] * 200_000}),
    "a billion effects at once": images({"name": "choice", "count": 10**9}),
    "operations that are text": images(operations="crop"),
    "a crop of 1e308": images({**CROP, "ratio": [1e-308, 1e308]}),
}
ATTACKS = [
    *(Attack(f"augmentation: {what}", build, VIEWS) for what, build in AUGMENTATIONS.items()),
    Attack("a seed that is none", fact(VIEWS, "seed", to=-1), VIEWS),
    Attack("views with a proof that is no text", fact(VIEWS, "proof", to={"a": 1}), VIEWS),
    Attack("random views that begin with view 0", lambda root: change(root, VIEWS, "views", to=[0, 2]), VIEWS),
    Attack("random views of no view", lambda root: change(root, VIEWS, "views", to=None), VIEWS),
    Attack("other parameters", array(VIEWS, "view", WIDE, widened), VIEWS, says="train/views.1"),
    Attack("other parameters in later views", array(MORE, "view", WIDE, widened), VIEWS, says="train/views.3"),
    Attack("whole numbers", array(MORE, "view", WHOLE, np.int64), VIEWS, says="train/views.3"),
    Attack("no array of views", array(VIEWS, "view", replace(WIDE, name="v", shape=(4,))), VIEWS, says="train/views.1"),
    Attack("views of other rows", other(VIEWS, identity={"data": rows_identity(11)}), VIEWS, says="train/views.1"),
    Attack("a gap", elsewhere(MORE, (4, 5)), VIEWS, says="train/views.3 begins with view 4, and view 3 is missing"),
    Attack("views twice", elsewhere(MORE, (2, 4)), VIEWS, says="train/views.3 begins with view 2"),
    Attack("views of two seeds", fact(MORE, "seed", to=1), VIEWS, says="train/views.3"),
    Attack(
        "views of two augmentations",
        fact(MORE, "augmentation", to={**MASK.to_json(), "share": 0.31}),
        VIEWS,
        says="train/views.3",
    ),
    Attack("an order that is no number", fact(TEACHER, "order", to="first"), TEACHER),
    Attack("an order beyond all", fact(TEACHER, "order", to=1e308), TEACHER),
    Attack("a teacher that takes in nothing", fact(TEACHER, "input", to=[]), TEACHER),
    Attack("valid in three columns", lambda root: change(root, TEACHER, "arrays", 1, "shape", to=[3]), TEACHER),
    Attack("reasons as floats", lambda root: change(root, TEACHER, "arrays", 2, "dtype", to="float32"), TEACHER),
    Attack("labels in columns", lambda root: change(root, ROWS, "arrays", 3, "shape", to=[3]), ROWS),
    Attack("keys that are not ragged", lambda root: change(root, ROWS, "arrays", 1, "longest", to=0), ROWS),
    Attack("inputs with a proof that is no text", fact(INPUTS, "proof", to=[]), INPUTS),
    *(
        Attack(f"inputs that are {str(what)[:40]}", fact(INPUTS, "input", to=what), INPUTS, says="train/inputs")
        for what in (
            None,
            [],
            "image",
            {"kind": "image", "size": 2**20, "interpolation": "bicubic"},
            {"kind": "image", "size": 8, "interpolation": "bicubic"},
            {"kind": "image", "size": -1, "interpolation": "bicubic"},
            {"kind": "text"},
            {"kind": "text", "tokenizer_sha256": "0" * 64, "max_length": 2**47},
            {"kind": "text", "tokenizer_sha256": "0" * 64, "max_length": 7},
            {"kind": "text", "tokenizer_sha256": "?", "max_length": 8},
        )
    ),
    Attack("inputs of other rows", other(INPUTS, identity={"data": rows_identity(11)}), INPUTS, says="train/inputs"),
]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_parts_of_views_and_inputs(attack, good, tmp_path):
    check(attack, good, tmp_path / "cache")


ACROSS = {
    "NaN": numbers(VIEWS, "view", (0, 3, 0), np.nan),
    "infinity": numbers(VIEWS, "view", (1, 9, 1), np.inf),
    "a position beyond the text": numbers(VIEWS, "view", (0, 0, 0), MASK.max_length),
    "a position of 1e38": numbers(MORE, "view", (0, 0, 0), 1e38),
    "half a position": numbers(MORE, "view", (0, 0, 0), 0.5),
    "a negative token": numbers(VIEWS, "view", (0, 0, 1), -2),
    "a token beyond the vocabulary": numbers(VIEWS, "view", (1, 5, 1), TOKENS),
    "a token of 2**24": numbers(MORE, "view", (0, 5, 3), 2.0**24),
    "a position without a token": numbers(VIEWS, "view", (0, 5, 1), -1),
    "tokens beyond the vocabulary": numbers(INPUTS, "tokens", (0, 7), TOKENS),
    "offsets beyond all tokens": numbers(INPUTS, "offsets", (0, 7, 1), 2**60),
    "offsets before the first": numbers(INPUTS, "offsets", (0, 7, 0), -(2**62)),
    "offsets back": numbers(INPUTS, "offsets", (0, 7), [9, 3]),
    "a text longer than the longest": numbers(INPUTS, "offsets", (0, 0), [0, MASK.max_length + 1]),
    "a reason of the future": numbers(INPUTS, "reason", (0, 1), 77),
    "valid and bad": numbers(INPUTS, "reason", (0, 1), 1),
    "neither valid nor bad": numbers(INPUTS, "valid", (0, 1), 2),
}
"""Numbers that are just what was committed: only who reads them can see that nobody has drawn them."""


@pytest.mark.parametrize("what", ACROSS)
def test_numbers_that_nobody_has_drawn(what, good, tmp_path):
    root = shutil.copytree(good, tmp_path / "cache")
    ACROSS[what](root)
    assert findings(root) == []
    with pytest.raises(CorruptCacheError, match="train/(views|inputs)"):
        read_all(root)


def test_parts_of_a_teacher_that_overlap_are_outputs_of_their_own(good, tmp_path):
    root = shutil.copytree(good, tmp_path / "cache")
    overlapping(root)
    reader = open_cache(root).split("train")
    assert findings(root) == [] and (reader.views(["embedding"]), reader.views(["vit.v2/embedding"])) == (4, 0)
    for view in range(4):
        kept = [
            open_cache(path).split("train").read(range(10), view=view, outputs=["embedding"]) for path in (root, good)
        ]
        assert torch.equal(kept[0]["embedding"], kept[1]["embedding"])


@pytest.mark.parametrize("name", ["embedding", "wider"])
def test_later_views_in_other_arrays(name, good, tmp_path):
    """The same output, by what part.json says, of which the numbers are not there, or have another shape."""
    root = shutil.copytree(good, tmp_path / "cache")
    wide = ArraySpec(name, "float16", (8,), ("feature",))
    array(TEACHER, "embedding", wide, lambda values: np.repeat(values, 2, axis=2))(root)
    for views in (0, 1, np.arange(10) % 4):
        with pytest.raises(CorruptCacheError, match=r"train/vit\.v1 has not the arrays"):
            open_cache(root).split("train").read(np.arange(10), view=views, outputs=["embedding"])


@pytest.mark.parametrize(("part", "first"), [(VIEWS, 1), (MORE, 3), (TEACHER, 1)])
def test_a_million_views_of_which_few_are_there(part, first, good, tmp_path):
    """Nothing is made for each of them."""
    root = shutil.copytree(good, tmp_path / "cache")
    if part == VIEWS:
        shutil.rmtree(root / "train/views.3")
    forge(root, part_of(part), lambda spec, values: replace(spec, views=(first, 2**20)))
    shutil.rmtree(root / "seals")
    tracemalloc.start()
    try:
        reader = open_cache(root).split("train")
        assert reader.views(["embedding"]) == (2**20 if part == TEACHER else 4)
        assert reader.stored_views.stop == (4 if part == TEACHER else 2**20)
        read = reader.read if part == TEACHER else lambda rows, view: reader.stored_views.parameters(rows, view)
        read(np.arange(3), view=np.array([0, first, first]))
        with pytest.raises(IncompleteError, match="are not committed"):
            read(np.arange(3), view=np.array([0, first, 2**20 - 1]))
        assert tracemalloc.get_traced_memory()[1] < 100 * MEGABYTE
    finally:
        tracemalloc.stop()
    assert findings(root) == [] and described(root) == []
