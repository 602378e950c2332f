"""An augmentation of images as a whole: frames each by themselves, identities, proofs."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from featurecache.augment import AUGMENTATIONS, Augmentation, ImageAugmentation, find_augmentation
from featurecache.augment.image import _test_image
from featurecache.augment.operations.crop import Crop
from featurecache.augment.operations.erase import Erase
from featurecache.augment.operations.flip import Flip
from featurecache.augment.operations.mix import Mix
from featurecache.augment.operations.rotate import Rotate
from featurecache.errors import UsageError
from tests.augment.pictures import batch, noise, scene

NAMES = [name for name in AUGMENTATIONS if name != "mask"]
ALL = [*NAMES, *(f"{name}+mix" for name in NAMES)]


def draw(augmentation: ImageAugmentation, count: int, *, view: int = 1, size: int = 64) -> np.ndarray:
    keys = [f"key {number}" for number in range(count)]
    sizes = np.full((count, 2), size, np.int32)
    return augmentation.draw(keys, sizes, view=view, seed=0, first_row=0, rows=count)


@pytest.mark.parametrize("name", ALL)
def test_it_is_an_augmentation(name: str) -> None:
    augmentation = find_augmentation(name)
    assert isinstance(augmentation, Augmentation)
    assert (augmentation.name, augmentation.version, augmentation.modality) == (name, 1, "image")
    assert augmentation.parameters[:4] == ("box.left", "box.top", "box.width", "box.height")
    assert len(set(augmentation.parameters)) == len(augmentation.parameters) == augmentation.plain.size
    assert augmentation.mixes == name.endswith("+mix")


@pytest.mark.parametrize("name", ALL)
def test_plain_changes_nothing(name: str) -> None:
    augmentation = find_augmentation(name)
    images = torch.from_numpy(batch(5, 20))
    parameters = np.tile(augmentation.plain, (5, 1))
    assert augmentation.accepts(parameters) and np.isnan(parameters[:, :4]).all()
    assert torch.equal(augmentation.finish(images, parameters, np.full(5, -1)), images)
    assert augmentation.partner_offsets(parameters).tolist() == [0] * 5
    assert augmentation.own_share(parameters).tolist() == [1] * 5


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(ALL), st.lists(st.text(max_size=5), min_size=1, max_size=7), st.integers(1, 300), st.data())
def test_a_draw_depends_on_its_own_key(name: str, keys: list[str], view: int, data: st.DataObject) -> None:
    augmentation = find_augmentation(name.removesuffix("+mix"))
    order = data.draw(st.permutations(range(len(keys))))
    sizes = data.draw(st.lists(st.tuples(st.integers(0, 999), st.integers(0, 999)), min_size=len(keys)))[: len(keys)]
    shape = np.array(sizes, np.int32)
    place = {"view": view, "seed": 5, "first_row": 0, "rows": len(keys)}
    everything = augmentation.draw(keys, shape, **place)
    assert np.array_equal(augmentation.draw([keys[at] for at in order], shape[order], **place), everything[order], True)
    for row, key in enumerate(keys):
        assert np.array_equal(augmentation.draw([key], shape[row : row + 1], **place)[0], everything[row], True)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(NAMES), st.integers(1, 8), st.integers(1, 40), st.integers(0, 50), st.data())
def test_a_frame_does_not_depend_on_its_company(
    name: str, count: int, side: int, view: int, data: st.DataObject
) -> None:
    augmentation = find_augmentation(f"{name}+mix")
    images, parameters = torch.from_numpy(batch(count, side, seed=view)), draw(augmentation, count, view=view)
    partners = np.arange(count) + augmentation.partner_offsets(parameters)
    partners[partners == np.arange(count)] = -1
    everything = augmentation.finish(images, parameters, partners)
    order = np.array(data.draw(st.permutations(range(count))))
    place = np.append(np.argsort(order), -1)  # where each frame went; -1 stays -1
    mixed = augmentation.finish(images[order], parameters[order], place[partners[order]])
    assert torch.equal(mixed, everything[order])
    for row in range(count):
        rows = [row] if partners[row] < 0 else [row, int(partners[row])]
        alone = augmentation.finish(images[rows], parameters[rows], np.array([1 if len(rows) > 1 else -1]))
        assert torch.equal(alone[0], everything[row])


@pytest.mark.parametrize("name", ["standard+mix", "strong+mix", "diffaugment+mix"])
def test_threads_change_nothing(name: str) -> None:
    augmentation = find_augmentation(name)
    images, parameters = torch.from_numpy(batch(80, 96)), draw(augmentation, 80)
    partners = np.arange(80) + augmentation.partner_offsets(parameters)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(augmentation.finish(images, parameters, partners))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    assert not torch.equal(found[0], images)


def test_the_frames_that_come_in_stay() -> None:
    augmentation = find_augmentation("strong+mix")
    images, parameters = torch.from_numpy(batch(6, 30)), draw(augmentation, 6)
    before = images.clone()
    augmentation.finish(images, parameters, np.array([1, 2, 3, 4, 5, 0]))
    assert torch.equal(images, before)


def test_frames_beyond_those_asked_for_are_there_to_be_mixed() -> None:
    augmentation = ImageAugmentation("test", 1, (Flip(p=1.0), Mix(cutmix=0.0)))
    images = torch.from_numpy(batch(3, 16))
    parameters = np.tile(augmentation.plain, (3, 1))
    parameters[2, 4] = 1  # the partner is flipped, in its own view
    parameters[0, 5:7] = 2, 0.25
    found = augmentation.finish(images, parameters, np.array([2, -1]))
    assert found.shape == (2, 3, 16, 16)
    expected = 0.25 * images[0].double() + 0.75 * images[2].flip(-1).double()
    assert torch.equal(found[0], expected.round().to(torch.uint8))
    assert torch.equal(found[1], images[1])


def test_without_a_partner_nothing_is_mixed() -> None:
    augmentation = find_augmentation("none+mix")
    images, parameters = torch.from_numpy(batch(4, 16)), draw(augmentation, 4)
    assert torch.equal(augmentation.finish(images, parameters, np.full(4, -1)), images)


def test_apply_cuts_out_and_then_changes() -> None:
    augmentation = ImageAugmentation("test", 1, (Crop(), Flip(), Erase(fill=7)))
    frame = noise(20, 40)
    parameters = np.array([[0.25, 0.5, 0.5, 0.5, 1, 0, 0, 0.5, 1]], np.float32)
    found = augmentation.apply([frame], parameters, 10, interpolation="nearest")[0].numpy()
    expected = frame[10:20, 10:30].transpose(2, 0, 1)[:, :, 1::2][:, :, ::-1].copy()
    expected[:, :, :5] = 7
    assert np.array_equal(found, expected)
    whole = augmentation.apply([frame], augmentation.plain[None], 10)[0]
    assert torch.equal(whole, find_augmentation("none").apply([frame], np.array([[0, 0, 1, 1]], np.float32), 10)[0])
    assert augmentation.apply([], np.zeros((0, 9), np.float32), 10).shape == (0, 3, 10, 10)


@pytest.mark.parametrize("name", NAMES)
def test_two_sizes_see_the_same(name: str) -> None:
    augmentation = find_augmentation(name)
    if name == "strong":  # equalising or sharpening a smaller picture is another thing
        augmentation = replace(augmentation, operations=(Crop(), Flip(), Rotate(fill=116), Erase(p=1.0, fill=40)))
    images = [scene(180, 240, seed=seed) for seed in range(12)]
    parameters = draw(augmentation, 12)
    large, small = (augmentation.apply(images, parameters, side).float() for side in (224, 128))
    means = [found.reshape(12, 3, 16, found.shape[-1] // 16, 16, -1).mean((3, 5)) for found in (large, small)]
    assert (means[0] - means[1]).abs().mean() < 1.5
    assert (means[0].roll(1, 0) - means[1]).abs().mean() > 20


@pytest.mark.parametrize("name", ALL)
def test_only_what_may_be_drawn_is_accepted(name: str) -> None:
    augmentation = find_augmentation(name)
    for view in range(1, 9):
        assert augmentation.accepts(draw(augmentation, 300, view=view))
    good = draw(augmentation, 4)
    for column, about in enumerate(augmentation.columns):
        wrong = [np.inf, -np.inf, about.high + 1, about.low - 1, *([0.5] if about.whole else [])]
        for number in [*wrong, *([np.nan] if column >= 4 or not np.isnan(good[0, 0]) else [])]:
            bad = good.copy()
            bad[2, column] = number
            assert not augmentation.accepts(bad)
    beyond = good.copy()
    beyond[1, :4] = 0.6, 0, 0.5, 1
    assert not augmentation.accepts(beyond)


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(ALL), st.integers(1, 20), st.data())
def test_nothing_that_is_accepted_breaks_anything(name: str, side: int, data: st.DataObject) -> None:
    augmentation = find_augmentation(name)
    row = [
        data.draw(
            st.integers(int(column.low), int(column.high)) if column.whole else st.floats(column.low, column.high)
        )
        for column in augmentation.columns
    ]
    row[2], row[3] = min(row[2], 1 - row[0]), min(row[3], 1 - row[1])
    parameters = np.array([row], np.float32)
    assert augmentation.accepts(parameters)
    found = augmentation.apply([noise(7, 9)], parameters, side)
    assert found.shape == (1, 3, side, side)
    assert augmentation.finish(found, parameters, np.array([0])).shape == (1, 3, side, side)
    assert 0 <= augmentation.own_share(parameters)[0] <= 1
    assert abs(int(augmentation.partner_offsets(parameters)[0])) < 1024


def test_proofs_are_stable_and_all_different() -> None:
    proofs = {name: find_augmentation(name).proof() for name in ALL}
    assert len(set(proofs.values())) == len(ALL)
    assert all(len(proof) == 64 and int(proof, 16) >= 0 for proof in proofs.values())
    assert {name: find_augmentation(name).proof() for name in ALL} == proofs


@pytest.mark.parametrize("name", ["standard", "strong", "diffaugment", "standard+mix"])
def test_a_proof_tells_any_other_number(name: str) -> None:
    augmentation = find_augmentation(name)
    proof = augmentation.proof()
    for at, operation in enumerate(augmentation.operations):
        for option in operation.__dataclass_fields__:  # type: ignore[attr-defined]
            value = getattr(operation, option)
            if not isinstance(value, float):
                continue
            other = replace(operation, **{option: value * 0.75 if option != "scale" else 1.1})  # type: ignore[type-var]
            operations = (*augmentation.operations[:at], other, *augmentation.operations[at + 1 :])
            assert replace(augmentation, operations=operations).proof() != proof


def test_a_proof_tells_other_code(monkeypatch: pytest.MonkeyPatch) -> None:
    from featurecache.augment import colours, image, randomness, warp

    def changed(module: object, name: str, make: object, program: str = "strong") -> None:
        augmentation = find_augmentation(program)
        before = augmentation.proof()
        with monkeypatch.context() as patch:
            patch.setattr(module, name, make(getattr(module, name)))  # type: ignore[operator]
            assert augmentation.proof() != before

    changed(warp, "_pixels", lambda real: lambda relative, side: real(relative, side) + 0.02)
    changed(colours, "grey", lambda real: lambda images: real(images) + 1, "standard")
    changed(image, "resample", lambda real: lambda frame, *rest: real(frame ^ 1, *rest))
    changed(image, "uniforms", lambda real: lambda *keys, **rest: randomness.uniforms(*keys, **{**rest, "stream": 9}))


def test_the_image_of_proofs_is_what_it_always_was() -> None:
    image = _test_image()
    assert (image.shape, image.dtype) == ((61, 83, 3), np.uint8)
    assert image[1, 2].tolist() == [11, 2, 0] and image[60, 82].tolist() == [34, 56, 56]
    assert np.unique(image).size == 256


@pytest.mark.parametrize(
    "operations", [(Flip(), Crop()), (Mix(), Flip()), (Flip(), Flip(p=0.1)), (Crop(), Crop())], ids=str
)
def test_some_orders_make_no_sense(operations: tuple[object, ...]) -> None:
    with pytest.raises(UsageError):
        ImageAugmentation("test", 1, operations)  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "version"), [("", 1), ("A b", 1), ("x" * 65, 1), ("../x", 1), ("fine", 0)])
def test_names_and_versions(name: str, version: int) -> None:
    with pytest.raises(UsageError):
        ImageAugmentation(name, version, ())


def test_importing_it_does_not_import_torch() -> None:
    code = "import sys, featurecache.augment as a; a.find_augmentation('strong+mix'); print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
