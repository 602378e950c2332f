"""Caches that were made to do harm to whoever trains from them: every hash is right, and every part fits the others.

Batches are made from the inputs that the cache holds, and from the samples themselves.
"""

import hashlib
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from featurecache.augment import TokenAugmentation, find_augmentation
from featurecache.errors import CorruptCacheError, FeatureCacheError, IdentityError, UsageError
from featurecache.store.reader import open_cache
from featurecache.store.seals import seal
from featurecache.store_inputs import plan_inputs, store_inputs
from pipelines.build import build, open_rows, try_once
from pipelines.recipe import TrainRecipe
from student.views import Views
from tests.attacks.hostile import change, forge, reseal, write
from tests.attacks.reading import described, findings
from tests.digesting import Digesting, students, taught
from tests.sample_inputs import Pictures, Words

COUNT, STUDENT = 12, "mobilenetv3_small_050"
PROGRAM = find_augmentation("strong+mix")
MASK = TokenAugmentation(mask_id=259, vocabulary=260, special_ids=(256, 257, 258, 259), max_length=32, share=0.2)
REFUSALS = (CorruptCacheError, UsageError, IdentityError)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Twelve pictures in four views, mixed, and their frames at 16 pixels."""
    source = Pictures.of_all_shapes(COUNT)
    cache = taught(tmp_path_factory.mktemp("pictures") / "cache", source, PROGRAM)
    objects, network_input = cache.objects, Digesting().input
    for _ in store_inputs(source, objects, plan_inputs(source, "train", network_input, 16), network_input):
        pass
    seal(objects)
    return source, _writable(objects.root)


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """Texts in four views, and their tokens."""
    source = Words(COUNT)
    return source, _writable(taught(tmp_path_factory.mktemp("words") / "cache", source, MASK).objects.root)


def _writable(root):
    for path in root.rglob("*"):
        if path.is_file():
            path.chmod(0o644)
    return root


def train(root, student):
    """All that training does before its first step, and a few batches of stored inputs through the student."""
    options = {"student": student, "objective": "align-uniform", "batch_size": 4, "validation": 0.2, "seed": 1}
    recipe = TrainRecipe(cache=str(root), **options)
    rows = open_rows(recipe)
    run = build(recipe, rows, device="cpu", workers=0)
    try_once(run)
    for batch in run.training.shuffled(4, seed=1, start=0, stop=12):
        with torch.inference_mode():
            run.student(batch.inputs)
    return rows


def batches(root, source):
    """Batches of two views of each sample, read from the samples themselves, for three epochs."""
    data = students(open_cache(root), source, views=Views(4, 2), check_inputs="off")
    return sum(len(batch.rows) for batch in data.shuffled(4, seed=1, start=0, stop=18))


def numbers(name, array, at, to):
    """A step that replaces some of the numbers of a part, at (view slot, row, ...)."""

    def make(spec, values):
        values[array] = values[array].copy()
        values[array][at] = to
        return spec

    return lambda root: forge(root, name, make)


def column(name, to, *, of=slice(None)):
    return numbers("views", "view", (slice(None), of, PROGRAM.parameters.index(name)), to)


def boxes(*box):
    return numbers("views", "view", (slice(None), slice(None), slice(0, 4)), box)


def fact(name, *path, to):
    def build(root):
        change(root, f"train/{name}/part.json", "facts", *path, to=to)
        reseal(root)

    return build


PARAMETERS = {
    "NaN": column("rotate", np.nan),
    "infinity": column("rotate", np.inf),
    "minus infinity": column("mix.share", -np.inf),
    "a number of 1e38": column("choice.1.strength", 1e38),
    "an effect that there is not": column("choice.1.effect", 12),
    "half an effect": column("choice.2.effect", 0.5),
    "half a flip": column("flip", 0.5),
    "a box that begins before the frame": boxes(-0.25, 0, 0.5, 0.5),
    "a box that ends beyond the frame": boxes(0.75, 0, 0.5, 0.5),
    "an enormous box": boxes(0, 0, 1e30, 1e30),
    "half a box": boxes(np.nan, 0, 1, 1),
    "a box without a height": boxes(0, 0, 1, np.nan),
    "an erasure beyond the frame": column("erase.width", 7),
    "a partner before the split": column("mix.offset", -COUNT),
    "a partner behind the split": column("mix.offset", 1000),
    "a partner far away": column("mix.offset", 2.0**40),
    "half a partner": column("mix.offset", 0.5),
}


@pytest.mark.parametrize("what", PARAMETERS)
def test_parameters_that_nobody_draws(what, pictures, tmp_path):
    source, good = pictures
    root = shutil.copytree(good, tmp_path / "cache")
    PARAMETERS[what](root)
    with pytest.raises(CorruptCacheError, match="train/views"):
        train(root, STUDENT)
    with pytest.raises(CorruptCacheError, match="train/views"):
        batches(root, source)
    assert findings(root) == described(root) == []


HARMLESS = {
    "boxes of no size": boxes(0.5, 0.5, 0, 0),
    "boxes of no size at the very end": boxes(1, 1, 0, 0),
    "the least of a box": boxes(0.5, 0.25, 1e-30, 1e-38),
    "every frame mixed with the first": numbers(
        "views",
        "view",
        (slice(None), slice(None), PROGRAM.parameters.index("mix.offset")),
        -np.arange(COUNT),
    ),
}


@pytest.mark.parametrize("what", HARMLESS)
def test_parameters_that_may_be(what, pictures, tmp_path):
    """Odd, and never drawn, but nothing that breaks."""
    source, good = pictures
    root = shutil.copytree(good, tmp_path / "cache")
    HARMLESS[what](root)
    train(root, STUDENT)
    assert batches(root, source) == 72


SIZES = {
    "no pixels": ((0, 0), CorruptCacheError, "no pixels"),
    "less than none": ((-5, 7), CorruptCacheError, "no pixels"),
    "as thin as can be": ((1, 2**31 - 1), FeatureCacheError, "cannot be decoded here"),
}


@pytest.mark.parametrize("what", SIZES)
def test_sizes_that_no_image_has(what, pictures, tmp_path):
    size, error, message = SIZES[what]
    root = shutil.copytree(pictures[1], tmp_path / "cache")
    numbers("rows", "size", (0, slice(None)), size)(root)
    with pytest.raises(error, match=message):
        train(root, STUDENT)


def test_an_image_of_two_thousand_million_pixels_a_side(pictures, tmp_path):
    """Only its shape is used."""
    root = shutil.copytree(pictures[1], tmp_path / "cache")
    numbers("rows", "size", (0, slice(None)), 2**31 - 1)(root)
    train(root, STUDENT)


def larger_vocabulary(root):
    """Views that put tokens into texts which the tokenizer does not have; alike in both places."""
    vocabulary = 2**24

    def make(spec, values):
        values["view"] = values["view"].copy()
        values["view"][:, :, 1] = vocabulary - 1
        values["view"][:, :, 0] = 0
        augmentation = replace(MASK, vocabulary=vocabulary)
        return replace(
            spec, facts={**spec.facts, "augmentation": augmentation.to_json(), "proof": augmentation.proof()}
        )

    forge(root, "views", make)


def views_of_images(root):
    """Each number right for an augmentation of images; an odd one out of texts."""
    program = find_augmentation("flip-crop")

    def make(spec, values):
        values["view"] = np.tile(program.plain, (*values["view"].shape[:2], 1))
        facts = {**spec.facts, "augmentation": program.to_json(), "proof": program.proof()}
        return replace(spec, arrays=(replace(spec.arrays[0], shape=program.plain.shape),), facts=facts)

    forge(root, "views", make)


TEXTS = {
    "views of images": (views_of_images, "train/views changes images"),
    "a larger vocabulary": (larger_vocabulary, "train/views"),
    "tokens beyond the vocabulary": (numbers("inputs", "tokens", (0, 7), 260), "train/inputs"),
    "offsets beyond all tokens": (numbers("inputs", "offsets", (0, slice(None), 1), 2**62), "train/inputs"),
    "reasons of the future": (numbers("inputs", "reason", (0, slice(None)), 200), "train/inputs"),
    "a position beyond the text": (numbers("views", "view", (0, 0, 0), 32), "train/views"),
    "a token of 2**30": (numbers("views", "view", (0, 0, 1), 2.0**30), "train/views"),
}


@pytest.mark.parametrize("what", TEXTS)
def test_texts_that_nobody_has_read(what, words, tmp_path):
    build_it, message = TEXTS[what]
    root = shutil.copytree(words[1], tmp_path / "cache")
    build_it(root)
    with pytest.raises(CorruptCacheError, match=message):
        train(root, "bert:1x64")
    assert findings(root) == described(root) == []


def test_a_second_teacher_whose_input_is_none(pictures, tmp_path):
    """What the first one takes in is what the student is given; the others' is compared, where it makes sense."""
    for lie in ({"size": 2**20}, {"size": "24"}, {"kind": 7}):
        root = shutil.copytree(pictures[1], tmp_path / str(len(str(lie))))
        name = next(part.name for part in open_cache(root).parts("train") if part.kind == "teacher")
        change(root, f"train/{name}/part.json", "facts", "input", to={**Digesting().input.to_json(), **lie})
        reseal(root)
        with pytest.raises(CorruptCacheError, match=f"train/{name}"):
            train(root, STUDENT)


PROOFS = {
    "of the augmentation": (fact("views", "proof", to="0" * 64), "makes other views here"),
    "of the plain view": (fact("digesting", "proof", to={"a": []}), "resized otherwise"),
    "of other pixels": (numbers("inputs", "input_hash", (0, 5), 1), "row 5 of the stored inputs"),
}


@pytest.mark.parametrize("what", PROOFS)
def test_proofs_of_something_else(what, pictures, tmp_path):
    root = shutil.copytree(pictures[1], tmp_path / "cache")
    PROOFS[what][0](root)
    with pytest.raises(IdentityError, match=PROOFS[what][1]):
        train(root, STUDENT)


def test_a_token_whose_number_would_take_gigabytes_of_weights(words, tmp_path):
    """A student has a row of weights for each number up to the largest."""
    root = shutil.copytree(words[1], tmp_path / "cache")
    name = next(part.name for part in open_cache(root).parts("train") if part.kind == "teacher")
    model = {"type": "WordLevel", "vocab": {"a": 0, "[UNK]": 2**30}, "unk_token": "[UNK]"}
    data = json.dumps({"version": "1.0", "added_tokens": [], "model": model}).encode()
    write(root, f"train/{name}/assets/tokenizer.json", data)
    asset = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    change(root, f"train/{name}/part.json", "assets", to={"tokenizer.json": asset})
    reseal(root)
    with pytest.raises(CorruptCacheError, match="its 2 tokens have ids up to 1,073,741,824"):
        train(root, "bert:1x64")
