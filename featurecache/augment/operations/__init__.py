"""The operations that an augmentation of images is made of, one file each."""

from featurecache.augment.base import Operation
from featurecache.registry import Registry

__all__ = ["OPERATIONS"]

OPERATIONS: Registry[Operation] = Registry(
    "operation",
    crop="featurecache.augment.operations.crop:Crop",
    flip="featurecache.augment.operations.flip:Flip",
    colour="featurecache.augment.operations.colour:Colour",
    rotate="featurecache.augment.operations.rotate:Rotate",
    choice="featurecache.augment.operations.choice:Choice",
    erase="featurecache.augment.operations.erase:Erase",
    diffaugment="featurecache.augment.operations.diffaugment:DiffAugment",
    mix="featurecache.augment.operations.mix:Mix",
)
