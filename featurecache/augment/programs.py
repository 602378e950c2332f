"""The augmentations that have a name, and those that users write themselves: docs/views.md tells their numbers."""

import tomllib
from dataclasses import replace
from pathlib import Path

from featurecache.augment.base import Augmentation
from featurecache.augment.image import ImageAugmentation
from featurecache.augment.operations.choice import EFFECTS, Choice
from featurecache.augment.operations.colour import Colour
from featurecache.augment.operations.crop import Crop
from featurecache.augment.operations.diffaugment import DiffAugment
from featurecache.augment.operations.erase import Erase
from featurecache.augment.operations.flip import Flip
from featurecache.augment.operations.mix import Mix
from featurecache.augment.operations.rotate import Rotate
from featurecache.augment.reading import augmentation_from_json
from featurecache.errors import UsageError
from featurecache.registry import Registry

__all__ = ["AUGMENTATIONS", "DIFFAUGMENT", "FLIP_CROP", "NONE", "STANDARD", "STRONG", "find_augmentation"]

_MIX = "+mix"
_LARGEST_FILE = 2**16

NONE = ImageAugmentation("none", 1, ())
FLIP_CROP = ImageAugmentation("flip-crop", 1, (Crop(), Flip()))
STANDARD = ImageAugmentation("standard", 1, (Crop(), Flip(), Colour()))
STRONG = ImageAugmentation(
    "strong",
    1,
    (
        Crop(),
        Flip(),
        Rotate(degrees=15.0, p=0.5),
        Choice(count=2, magnitude=0.3, effects=tuple(effect for effect in EFFECTS if effect != "rotate")),
        Erase(),
    ),
)
DIFFAUGMENT = ImageAugmentation("diffaugment", 1, (Crop(), Flip(), DiffAugment()))

AUGMENTATIONS: Registry[Augmentation] = Registry(
    "augmentation",
    none="featurecache.augment.programs:NONE",
    flip_crop="featurecache.augment.programs:FLIP_CROP",
    standard="featurecache.augment.programs:STANDARD",
    strong="featurecache.augment.programs:STRONG",
    diffaugment="featurecache.augment.programs:DIFFAUGMENT",
    mask="featurecache.augment.mask:TokenAugmentation",
)


def find_augmentation(text: str) -> ImageAugmentation:
    """The augmentation of images that "standard", "standard+mix" or "mine.toml" names.

    Raises UnknownNameError, or UsageError for a file that describes none.
    """
    if text.endswith(".toml"):
        return _read(Path(text))
    found = AUGMENTATIONS.get(text.removesuffix(_MIX))
    if not isinstance(found, ImageAugmentation):
        raise UsageError(f"{text!r} changes texts, and these are images")
    if not text.endswith(_MIX):
        return found
    return replace(found, name=text, operations=(*found.operations, Mix()))


def _read(path: Path) -> ImageAugmentation:
    hint = "docs/views.md shows how to write an augmentation"
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST_FILE + 1)
        if len(content) > _LARGEST_FILE:
            raise UsageError(f"{path} is too large to be an augmentation", hint=hint)
        value = tomllib.loads(content.decode())
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}", hint=hint) from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not TOML: {error}", hint=hint) from None
    try:
        found = augmentation_from_json(value)
    except UsageError as error:
        raise UsageError(f"{path}: {error.message}", hint=error.hint or hint) from None
    if not isinstance(found, ImageAugmentation):
        raise UsageError(f"{path} is an augmentation of texts, and these are images")
    if found.name.removesuffix(_MIX) in AUGMENTATIONS:
        raise UsageError(f"{path} has the name of another augmentation, {found.name}", hint="give it one of its own")
    return found
