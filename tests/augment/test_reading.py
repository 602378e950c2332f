"""Augmentations from plain data: whoever wrote it, there is one or a UsageError."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurecache.augment import AUGMENTATIONS, ImageAugmentation, augmentation_from_json, find_augmentation
from featurecache.augment.operations import OPERATIONS
from featurecache.errors import UnknownNameError, UsageError
from featurecache.fingerprint import canonical_json

NAMES = [name for name in AUGMENTATIONS if name != "mask"]
FLIP = {"name": "flip", "p": 0.25}


def program(*operations: object, **fields: object) -> dict[str, Any]:
    return {"name": "mine", "version": 1, "modality": "image", "operations": list(operations), **fields}


@pytest.mark.parametrize("name", [*NAMES, *(f"{name}+mix" for name in NAMES)])
def test_what_is_written_is_read(name: str) -> None:
    augmentation = find_augmentation(name)
    again = augmentation_from_json(json.loads(json.dumps(augmentation.to_json())))
    assert again == augmentation and again.proof() == augmentation.proof()


@pytest.mark.parametrize("name", list(OPERATIONS))
def test_every_operation_has_its_own_name_and_numbers(name: str) -> None:
    operation = augmentation_from_json(program({"name": name})).operations[0]
    assert operation.name == name
    draws = operation.draw(np.full((3, operation.uniforms), 0.4), _drawn(3))
    assert draws.shape == (3, len(operation.columns))


def _drawn(count: int) -> Any:
    from featurecache.augment.base import Drawn

    return Drawn([str(number) for number in range(count)], np.full((count, 2), 50, np.int32), 1, 0, 0, count)


def test_one_and_one_point_nought_are_the_same_identity() -> None:
    whole, real = (
        program({"name": "flip", "p": p}, {"name": "erase", "scale": [s, 1]}) for p, s in ((1, 0), (1.0, 0.0))
    )
    first, second = augmentation_from_json(whole), augmentation_from_json(real)
    assert canonical_json(first.to_json()) == canonical_json(second.to_json())


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        "standard",
        7,
        {},
        {"name": "mine", "version": 1},
        program(FLIP, more=1),
        program(modality="sound"),
        program(modality=["image"]),
        program(name=None),
        program(name="x" * 10**6),
        program(name="../../x"),
        program(version=1.5),
        program(version=True),
        program(version=10**400),
        program(version="1"),
        program(operations={"flip": 1}),
        program(operations=None),
        program(operations="flip"),
        program(*[{"name": name} for name in OPERATIONS] * 3),
        program(*[FLIP] * 100_000),
        program("flip"),
        program({}),
        program({"p": 0.5}),
        program({"name": "explode"}),
        program({"name": ["flip"]}),
        program({"name": "flip", "q": 0.5}),
        program({"name": "flip", "__class__": 1}),
        program({"name": "flip", "uniforms": 10**9}),
        program({"name": "flip", "columns": []}),
        program({"name": "flip", "p": 1.5}),
        program({"name": "flip", "p": -1e-9}),
        program({"name": "flip", "p": float("nan")}),
        program({"name": "flip", "p": float("inf")}),
        program({"name": "flip", "p": 10**400}),
        program({"name": "flip", "p": "0.5"}),
        program({"name": "flip", "p": None}),
        program({"name": "flip", "p": True}),
        program({"name": "flip", "p": [0.5]}),
        program({"name": "crop", "scale": 0.5}),
        program({"name": "crop", "scale": [0.5]}),
        program({"name": "crop", "scale": [0.5, 0.6, 0.7]}),
        program({"name": "crop", "scale": [0.6, 0.5]}),
        program({"name": "crop", "scale": [0, 1]}),
        program({"name": "crop", "ratio": [0.5, float("nan")]}),
        program({"name": "crop", "ratio": [1, 10**9]}),
        program({"name": "rotate", "degrees": 1e9}),
        program({"name": "rotate", "fill": 0.5}),
        program({"name": "rotate", "fill": 256}),
        program({"name": "colour", "hue": 0.6}),
        program({"name": "colour", "brightness": -0.1}),
        program({"name": "choice", "count": 10**9}),
        program({"name": "choice", "count": 0}),
        program({"name": "choice", "effects": []}),
        program({"name": "choice", "effects": ["rotate", "rotate"]}),
        program({"name": "choice", "effects": ["os.system"]}),
        program({"name": "choice", "effects": "rotate"}),
        program({"name": "choice", "effects": ["x" * 10**6]}),
        program({"name": "diffaugment", "scale": 0.5}),
        program({"name": "mix", "cutmix": 2}),
        program({"name": "mix"}, FLIP),
        program(FLIP, {"name": "crop"}),
        program(FLIP, FLIP),
        {"name": "mask", "version": 1, "modality": "text"},
        {"modality": "text", "mask_id": 1, "vocabulary": 10**9, "special_ids": [0], "max_length": 8},
        {"modality": "text", "mask_id": 1, "vocabulary": 9, "special_ids": [0] * 10**6, "max_length": 8},
        {"modality": "text", "mask_id": 1, "vocabulary": 9, "special_ids": [0.5], "max_length": 8},
    ],
    ids=lambda value: str(value)[:50],
)
def test_strange_values_are_refused_in_few_words(value: object) -> None:
    with pytest.raises(UsageError) as error:
        augmentation_from_json(value)
    assert len(str(error.value)) < 400


def test_nothing_deep_is_looked_into() -> None:
    deep: Any = 0.5
    for _ in range(100_000):
        deep = [deep]
    for value in (deep, program(deep), program({"name": "flip", "p": deep}), program({"name": "crop", "scale": deep})):
        with pytest.raises(UsageError):
            augmentation_from_json(value)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([*NAMES, "strong+mix"]), json_values, st.data())
def test_one_strange_value_anywhere(name: str, strange: object, data: st.DataObject) -> None:
    value = find_augmentation(name).to_json()
    places: list[tuple[Any, Any]] = [(value, field) for field in value]
    for operation in value["operations"]:
        places += [(operation, option) for option in operation]
        for option in operation.values():
            places += [(option, at) for at in range(len(option))] if isinstance(option, list) else []
    holder, at = data.draw(st.sampled_from(places))
    holder[at] = strange
    try:
        found = augmentation_from_json(value)
    except UsageError:
        return
    assert isinstance(found, ImageAugmentation)  # it was a good value after all, and is what it was read from
    assert augmentation_from_json(found.to_json()) == found


def test_a_wrong_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'standard'"):
        find_augmentation("standart")
    with pytest.raises(UnknownNameError, match="did you mean 'strong'"):
        find_augmentation("stron+mix")
    with pytest.raises(UnknownNameError, match="did you mean 'flip'"):
        augmentation_from_json(program({"name": "flop"}))
    with pytest.raises(UsageError, match="texts"):
        find_augmentation("mask")


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        'name = "mine"\nversion = 2\n[[operations]]\nname = "crop"\nscale = [0.5, 1]\n[[operations]]\nname = "mix"\n'
    )
    found = find_augmentation(str(path))
    assert (found.name, found.version, found.mixes) == ("mine", 2, True)
    assert found.to_json()["operations"][0] == {"name": "crop", "scale": [0.5, 1.0], "ratio": [0.75, 4 / 3]}


@pytest.mark.parametrize(
    "content",
    [
        b"name = ",
        b"\xff\xfe",
        b'name = "mine"',
        b'name = "mine"\nversion = 1979-05-27\noperations = []',
        b'name = "mine"\nversion = 1\noperations = ' + b"[" * 50_000,
        b"#" * 10**6,
        b'modality = "text"\nmask_id = 1\nvocabulary = 9\nspecial_ids = [0]\nmax_length = 8',
    ],
    ids=lambda content: str(content[:20]),
)
def test_a_file_that_is_none(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(content)
    with pytest.raises(UsageError, match="mine.toml"):
        find_augmentation(str(path))


def test_no_file_or_a_folder(tmp_path: Path) -> None:
    (tmp_path / "folder.toml").mkdir()
    for name in ("none.toml", "folder.toml"):
        with pytest.raises(UsageError, match="cannot read"):
            find_augmentation(str(tmp_path / name))
