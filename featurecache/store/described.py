"""What parts of kind "views" and "inputs" say they are, read without trust and without their rows."""

from collections.abc import Sequence

from featurecache.augment import Augmentation, augmentation_from_json
from featurecache.errors import CorruptCacheError, UsageError
from featurecache.store.layout import REASON, VALID, PartSpec
from featurecache.store.validate import check_count, check_hash
from featurecache.types import ArraySpec, Json, Modality

__all__ = ["LARGEST_SIZE", "LONGEST_TEXT", "SIZE", "described_inputs", "described_views", "views_array"]

LARGEST_SIZE = 4096
"""Pixels a side of the largest frames that are kept: what a stranger's part may claim of memory."""
LONGEST_TEXT = 2**17
"""Tokens of the longest texts that are kept."""
SIZE = ArraySpec("size", "int32", (2,), ("axis",))
"""Height and width of each image: an array of the part "rows"."""


def described_views(parts: Sequence[PartSpec]) -> Augmentation:
    """What drew the views of a split, of which these are all the parts, in order of their views.

    Raises CorruptCacheError unless they are one row of views, 1 to N, drawn by one augmentation that is known here.
    """
    first, expected = parts[0], 1
    for part in parts:
        expected = _stop_after(part, expected)
        if part.facts["augmentation"] != first.facts["augmentation"] or part.facts["seed"] != first.facts["seed"]:
            raise CorruptCacheError(f"{part.prefix} has other views than {first.prefix}")
    try:
        augmentation = augmentation_from_json(first.facts["augmentation"])
    except UsageError as error:
        hint = "a newer featurecache may know it"
        raise CorruptCacheError(f"the augmentation of {first.prefix} is none: {error.message}", hint=hint) from None
    for part in parts:
        if views_array(augmentation) not in part.arrays:
            raise CorruptCacheError(f"{part.prefix} does not have the parameters of its augmentation")
    return augmentation


def views_array(augmentation: Augmentation) -> ArraySpec:
    """The array of a part of views."""
    return ArraySpec("view", "float32", (len(augmentation.parameters),), ("parameter",))


def described_inputs(part: PartSpec, rows: PartSpec) -> tuple[Modality, int]:
    """What a part of inputs over these rows holds: images of so many pixels a side, or texts of so many tokens.

    Raises CorruptCacheError for a part that does not hold what it says.
    """
    try:
        if part.kind != "inputs" or part.views is not None:
            raise ValueError("it is no part of inputs")
        modality, size = _modality_and_size(part.facts["input"])
        _check_arrays(part, modality, size)
        if rows.facts["modality"] != modality or (modality == "image" and SIZE not in rows.arrays):
            sizes = " with their sizes" if modality == "image" else ""
            raise ValueError(f"{rows.prefix} lists no {modality}s{sizes}")
    except (KeyError, TypeError, ValueError, UsageError) as error:
        raise CorruptCacheError(f"{part.prefix} does not hold inputs as it should: {error}") from None
    return modality, size


def _stop_after(part: PartSpec, expected: int) -> int:
    """One past the last view of a part. Raises CorruptCacheError unless its first is the one expected."""
    if part.views is None or part.kind != "views":
        raise CorruptCacheError(f"{part.prefix} holds no views")
    start, stop = part.views
    if start != expected:
        what = f"view {expected} is missing" if start > expected else "others have that already"
        raise CorruptCacheError(f"{part.prefix} begins with view {start}, and {what}")
    return stop


def _modality_and_size(value: Json) -> tuple[Modality, int]:
    """Raises KeyError, TypeError or ValueError for what describes no inputs."""
    if value["kind"] == "text":
        check_hash(value["tokenizer_sha256"])
        return "text", check_count(value["max_length"], below=LONGEST_TEXT + 1)
    if value["kind"] != "image" or value["interpolation"] != "bicubic":
        raise ValueError("it has neither texts nor bicubic images")
    return "image", check_count(value["size"], below=LARGEST_SIZE + 1)


def _check_arrays(part: PartSpec, modality: Modality, size: int) -> None:
    """Raises ValueError or UsageError unless a part has the arrays that inputs of this kind have."""
    expected = [VALID, REASON, ArraySpec("input_hash", "uint64")]
    if modality == "image":
        expected.append(ArraySpec("image", "uint8", (size, size, 3), ("y", "x", "channel")))
    else:
        ids = part.array("tokens")
        if ids.dtype not in ("uint16", "int32") or ids.shape or not ids.longest == size > 0:
            raise ValueError(f"its tokens are not {size} ids at most")
        expected.append(ArraySpec("offsets", "int64", (2,), ("bound",)))
    for array in expected:
        if part.array(array.name) != array:
            raise ValueError(f"its array {array.name} is another")
