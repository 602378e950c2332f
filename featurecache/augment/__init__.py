"""Random views of a sample as rows of numbers, drawn once: what an augmentation may do, and doing it."""

from featurecache.augment.base import Augmentation
from featurecache.augment.image import ImageAugmentation
from featurecache.augment.mask import TokenAugmentation
from featurecache.augment.programs import AUGMENTATIONS, find_augmentation
from featurecache.augment.reading import augmentation_from_json

__all__ = [
    "AUGMENTATIONS",
    "Augmentation",
    "ImageAugmentation",
    "TokenAugmentation",
    "augmentation_from_json",
    "find_augmentation",
]
