"""What a network takes in, and how a decoded sample is made into it: image geometry, or tokens.

A teacher and a student each have such an input. Geometry is decided here and is uint8; scaling to floats with mean and
standard deviation is the network's own affair and happens on its device.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
from PIL import Image

from featurecache.augment.mask import corrupt
from featurecache.augment.resample import resample
from featurecache.errors import BadSampleError, UsageError
from featurecache.fingerprint import hash_json
from featurecache.types import Decoded, Json, Modality, Reason

if TYPE_CHECKING:
    import tokenizers
    from torch import Tensor

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "ImageInput",
    "Input",
    "Inputs",
    "Prepared",
    "Seen",
    "TextInput",
    "input_from_json",
]

Seen: TypeAlias = "np.ndarray | list[int]"
"""What all views of a sample are made of: uint8 (height, width, 3), or token ids."""
Prepared: TypeAlias = "np.ndarray | list[int]"
"""One prepared sample: uint8 (3, height, width), or token ids."""
Inputs: TypeAlias = "Mapping[str, Tensor]"
"""A batch: {"images": uint8 (batch, 3, height, width)} or {"ids": int64 (batch, tokens), "mask": bool, same shape}."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_MAX_RESIZED_PIXELS = 2**27
_MOST_PIXELS = 2**12
"""Largest side of an image that a cache can ask for."""
_PROOF_TEXT = "A fixed text: naïve façades, 12,345 µm² — 東京, “quotes”, e\u0301 and\ttabs; UPPER lower."
_RESAMPLING = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "nearest": Image.Resampling.NEAREST,
}


@runtime_checkable
class Input(Protocol):
    """How decoded samples become a batch. It runs in loader workers, so an input can be pickled."""

    @property
    def modality(self) -> Modality:
        """What it takes in."""
        ...

    def read(self, data: Decoded) -> Seen:
        """What all views of a decoded sample are made of: the image itself, or the ids of the text's tokens."""
        ...

    def show(self, seen: Seen, parameters: np.ndarray) -> Prepared:
        """One view, as the network takes it: with float32 (parameters,) of an augmentation, or without any the plain
        one. What an augmentation does besides cutting out is left to `finish`. Raises BadSampleError if it cannot be.
        """
        ...

    def prepare(self, data: Decoded) -> Prepared:
        """The plain view of one decoded sample."""
        ...

    def collate(self, items: Sequence[Prepared]) -> Inputs:
        """Prepared samples as one batch."""
        ...

    def to_json(self) -> Json:
        """All that decides what the network sees, as plain JSON: part of a cache's identity."""
        ...

    def proof(self) -> str:
        """A hash of what is made of one fixed sample: another where the libraries underneath do otherwise."""
        ...


@dataclass(frozen=True, slots=True)
class ImageInput:
    """A square image: the shorter side resized to size / crop_pct, then the centre cut out, as timm evaluates."""

    size: int = 224
    """Pixels a side."""
    crop_pct: float = 0.875
    interpolation: str = "bicubic"
    """"bilinear", "bicubic" or "nearest", antialiased."""
    crop_mode: str = "center"
    """"center", or "squash": both sides resized to size / crop_pct without keeping their ratio."""
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    modality: Modality = field(default="image", init=False)

    def __post_init__(self) -> None:
        if self.interpolation not in _RESAMPLING:
            raise UsageError(f"unknown interpolation {self.interpolation!r}", hint=f"known: {', '.join(_RESAMPLING)}")
        if self.crop_mode not in ("center", "squash"):
            raise UsageError(f"unknown crop mode {self.crop_mode!r}", hint="known: center, squash")
        if not 0 < self.crop_pct <= 1 or self.size < 1:
            raise UsageError(f"no image input has size {self.size} and crop_pct {self.crop_pct}")

    def read(self, data: Decoded) -> np.ndarray:
        """The image itself. Raises BadSampleError for one so thin that its plain view would take gigabytes: it is bad
        in every view then, whichever are made of one decoding."""
        assert isinstance(data, np.ndarray)
        self._resized((data.shape[1], data.shape[0]))
        return data

    def show(self, seen: Seen, parameters: np.ndarray) -> np.ndarray:
        """uint8 (height, width, 3) of any size -> uint8 (3, size, size): the box of a view, or the plain view.

        Raises BadSampleError for an image so thin that resizing its shorter side would take gigabytes.
        """
        assert isinstance(seen, np.ndarray)
        box = parameters[:4].astype(np.float64)
        if not box.size or np.isnan(box[0]):
            return self._plain(seen)
        return resample(seen, box, self.size, self.interpolation)

    def prepare(self, data: Decoded) -> np.ndarray:
        """uint8 (height, width, 3) of any size -> uint8 (3, size, size): the plain view, view 0."""
        return self._plain(self.read(data))

    def plain_box(self, height: int, width: int) -> np.ndarray:
        """float64 (left, top, width, height): what the plain view shows of an image of this size, relative to it."""
        resized = np.array(self._resized((width, height)), float)
        offset = np.rint((resized - self.size) / 2)  # whole pixels, as `_plain` cuts
        return np.concatenate([offset / resized, self.size / resized])

    def _plain(self, seen: np.ndarray) -> np.ndarray:
        image = Image.fromarray(seen)
        width, height = self._resized(image.size)
        image = image.resize((width, height), _RESAMPLING[self.interpolation])
        left, top = round((width - self.size) / 2), round((height - self.size) / 2)
        image = image.crop((left, top, left + self.size, top + self.size))
        return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))

    def _resized(self, size: tuple[int, int]) -> tuple[int, int]:
        """(width, height) to which an image of this (width, height) is resized before the crop."""
        scaled = int(self.size / self.crop_pct)  # timm rounds down too
        width, height = (scaled, scaled) if self.crop_mode == "squash" else _shorter_side(size, scaled)
        if width * height > _MAX_RESIZED_PIXELS:
            raise BadSampleError(Reason.IMAGE_TOO_LARGE, f"{width} x {height} with the shorter side resized")
        return width, height

    def collate(self, items: Sequence[Prepared]) -> Inputs:
        """Stack to {"images": uint8 (batch, 3, size, size)}."""
        import torch

        return {"images": torch.from_numpy(np.stack(items))}

    def normalise(self, images: "Tensor") -> "Tensor":
        """uint8 (batch, 3, size, size) -> float32, scaled to [0, 1], less mean, over std, on the images' device."""
        import torch

        # filled on the device: numbers copied to a GPU would wait until it has done all that was asked of it
        scale, shift = (
            torch.cat([torch.full((1,), value, device=images.device) for value in values]).view(-1, 1, 1) * 255
            for values in (self.std, self.mean)
        )
        return (images.float() - shift) / scale

    def proof(self) -> str:
        """64 hexadecimal digits over the plain view of a fixed image."""
        rows, columns = np.mgrid[0:97, 0:131]
        image = np.stack([(rows * 7 + columns * 3) % 251, (rows * columns) % 253, rows * 2 + columns // 2], 2)
        return hashlib.sha256(self.prepare(image.astype(np.uint8)).tobytes()).hexdigest()

    def to_json(self) -> Json:
        """Every field, and the kind."""
        fields = asdict(self)
        return {**fields, "mean": list(self.mean), "std": list(self.std), "kind": "image"}


def _shorter_side(size: tuple[int, int], target: int) -> tuple[int, int]:
    width, height = size
    if width <= height:
        return target, int(target * height / width)
    return int(target * width / height), target


class TextInput:
    """Tokens of a fast tokenizer, cut at `max_length` and padded to the longest of the batch."""

    modality: Modality = "text"

    def __init__(self, tokenizer_json: str, *, max_length: int = 128) -> None:
        """`tokenizer_json` is the text of a `tokenizer.json`; it is data, no code of it is run."""
        self.tokenizer_json = tokenizer_json
        self.max_length = max_length
        self._tokenizer: tokenizers.Tokenizer | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"tokenizer_json": self.tokenizer_json, "max_length": self.max_length, "_tokenizer": None}

    @property
    def tokenizer(self) -> "tokenizers.Tokenizer":
        """The tokenizer itself, truncating at max_length and never padding."""
        if self._tokenizer is None:
            import tokenizers

            self._tokenizer = tokenizers.Tokenizer.from_str(self.tokenizer_json)
            self._tokenizer.no_padding()
            self._tokenizer.enable_truncation(self.max_length)
        return self._tokenizer

    @cached_property
    def vocabulary_size(self) -> int:
        """One past the largest token id, added tokens included: more than there are tokens where ids have gaps."""
        return 1 + max(self.tokenizer.get_vocab(with_added_tokens=True).values(), default=0)

    @property
    def padding_id(self) -> int:
        """The id that pads: [PAD], <pad>, or 0 where the vocabulary has neither (the mask hides it anyway)."""
        ids = (self.tokenizer.token_to_id(token) for token in ("[PAD]", "<pad>"))
        return next((number for number in ids if number is not None), 0)

    def read(self, data: Decoded) -> list[int]:
        """Token ids of one text, special tokens included."""
        assert isinstance(data, str)
        return self.tokenizer.encode(data).ids

    def show(self, seen: Seen, parameters: np.ndarray) -> list[int]:
        """The ids with the tokens that a view changes; at most `max_length`, the special ones at the end kept."""
        assert isinstance(seen, list)
        ids = self.shortened(seen)
        end = len(ids) - self._special_at_the_end  # a longer input, whose view this may be, has ordinary tokens there
        return corrupt(ids[:end], parameters) + ids[end:]

    def prepare(self, data: Decoded) -> list[int]:
        """Token ids of one text, special tokens included."""
        return self.read(data)

    def shortened(self, ids: list[int]) -> list[int]:
        """What `read` would have given of a text of which a longer input gave these ids."""
        if len(ids) <= self.max_length:
            return ids
        last = self._special_at_the_end
        return ids[: self.max_length - last] + ids[len(ids) - last :]

    @cached_property
    def _special_at_the_end(self) -> int:
        """How many special tokens the tokenizer puts behind every text."""
        mask = self.tokenizer.encode("a").special_tokens_mask
        return len(mask) - 1 - max((at for at, special in enumerate(mask) if not special), default=len(mask) - 1)

    def collate(self, items: Sequence[Prepared]) -> Inputs:
        """Pad to {"ids": int64 (batch, longest), "mask": bool (batch, longest)}."""
        import torch

        longest = max(map(len, items))
        ids = np.full((len(items), longest), self.padding_id, np.int64)
        mask = np.zeros((len(items), longest), bool)
        for row, item in enumerate(items):
            ids[row, : len(item)] = item
            mask[row, : len(item)] = True
        return {"ids": torch.from_numpy(ids), "mask": torch.from_numpy(mask)}

    def proof(self) -> str:
        """64 hexadecimal digits over the ids of a fixed text."""
        return hash_json(self.prepare(_PROOF_TEXT))

    def to_json(self) -> Json:
        """The tokenizer's hash and the length limit."""
        return {"kind": "text", "tokenizer_sha256": hash_json(self.tokenizer_json), "max_length": self.max_length}


def input_from_json(value: Mapping[str, Any], tokenizer_json: str | None = None) -> ImageInput | TextInput:
    """The input that `to_json` described; a text input needs its tokenizer beside it.

    Raises UsageError for anything else, however strange: it may come from a stranger's cache.
    """
    try:
        if value["kind"] == "image":
            return _image_input({name: item for name, item in value.items() if name not in ("kind", "modality")})
        if tokenizer_json is None or value["kind"] != "text":
            raise UsageError("it is no image, and a text input needs its tokenizer.json")
        return TextInput(tokenizer_json, max_length=value["max_length"])
    except (KeyError, TypeError, ValueError, AttributeError, BadSampleError) as error:
        raise UsageError(f"that describes no input: {error!r}") from None


def _image_input(fields: dict[str, Any]) -> ImageInput:
    """Raises KeyError, TypeError, ValueError, BadSampleError or UsageError for what describes none."""
    size, crop_pct, mean, std = (fields[name] for name in ("size", "crop_pct", "mean", "std"))
    if not isinstance(size, int) or isinstance(size, bool) or not 1 <= size <= _MOST_PIXELS:
        raise ValueError(f"{str(size)[:40]!r} pixels a side")
    if not all(isinstance(number, int | float) and abs(number) < _MOST_PIXELS for number in (crop_pct, *mean, *std)):
        raise ValueError("it needs numbers")
    if not {len(mean), len(std)} <= {1, 3} or min(std) <= 0:
        raise ValueError("three channels have one mean or three, and so many deviations, above 0")
    found = ImageInput(**{**fields, "mean": tuple(mean), "std": tuple(std)})
    found.plain_box(1, 1)
    return found
