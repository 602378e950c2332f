"""Any vision encoder that transformers loads, with its own preprocessing made into an image input."""

import inspect
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from torch import Tensor

from featurecache.errors import TeacherError, UsageError
from featurecache.inputs import ImageInput, Inputs
from featurecache.teachers.transformers_network import Network, open_folder
from featurecache.types import Json, OutputSpec

__all__ = ["TransformersVision"]

_POOLS = ("pooler", "cls", "mean")
_WARPED_FROM = 384  # ConvNeXT's processor squashes images of this size and above
_TOLERANCE = 0.1  # standard deviations of a smooth image: above another rounding of the crop, below another geometry


class TransformersVision:
    """ "embedding" (hidden,): the pooler, the class token or the mean; "logits" (classes,) of classifiers."""

    def __init__(
        self,
        folder_or_name: str | Path,
        *,
        pool: str | None = None,
        img_size: int | None = None,
        crop_pct: float | None = None,
        weights: str | Path | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        """`folder_or_name` is a folder or ORG/NAME[@REVISION]; `pool` is "pooler", "cls" or "mean".

        Raises TeacherError where it cannot be loaded, lacks weights, or its preprocessing is not supported.
        """
        if pool is not None and pool not in _POOLS:
            raise TeacherError(f"unknown pooling {pool!r}", hint=f"known: {', '.join(_POOLS)}")
        folder = open_folder(folder_or_name, revision=revision, trust_remote_code=trust_remote_code)
        self.name = Path(str(folder_or_name).partition("@")[0]).name
        self._network = Network(
            folder, head="ForImageClassification", weights=weights, trust_remote_code=trust_remote_code
        )
        self.revision, self.license = self._network.revision, self._network.license
        self.input = _image_input(folder, img_size, crop_pct)
        self._options = _resizing(self._network, self.input.size)
        self._pool = pool or self._default_pool()
        if self._pool == "pooler" and not self._network.has_pooler:
            raise TeacherError(f"{self.name} has no pooler weights", hint="--pool cls or --pool mean")
        outputs = self._try()
        classes = {"logits": self._network.class_names}
        self.outputs = tuple(
            OutputSpec(name, tuple(each.shape[1:]), classes.get(name, ())) for name, each in outputs.items()
        )

    def __call__(self, batch: Inputs, further: Sequence[str] = ()) -> dict[str, Tensor]:
        """{"images": uint8 (batch, 3, size, size)} -> embedding (batch, hidden), logits (batch, classes), and what is
        asked for of layers, (batch, tokens, width)."""
        images = self.input.normalise(batch["images"])
        body, logits, layers = self._network(further, pixel_values=images, **self._options)
        with torch.inference_mode():
            outputs = {"embedding": _pooled(body, self._pool)}
        return outputs | ({} if logits is None else {"logits": logits}) | layers

    @cached_property
    def further(self) -> tuple[OutputSpec, ...]:
        """ "hidden.L" (tokens, hidden) and "qkv.L" (tokens, 3 * hidden), a class token first where there is one; of
        convolutional networks "hidden.L" (height * width, channels)."""
        blank = self._blank().to(self._network.model.device)
        return self._network.further(pixel_values=blank, **self._options)

    def to(self, device: torch.device | str) -> "TransformersVision":
        """Move the network; returns itself."""
        self._network.model.to(device)
        return self

    def identity(self) -> Json:
        """Architecture, settings, pooling and weights: the same however they were loaded."""
        return self._network.identity({"embedding": {"pool": self._pool}})

    def _default_pool(self) -> str:
        body, _, _ = self._network(pixel_values=self._blank(), **self._options)
        if self._network.has_pooler and getattr(body, "pooler_output", None) is not None:
            return "pooler"
        has_class_token = any(name.endswith("cls_token") for name, _ in self._network.model.named_parameters())
        return "cls" if has_class_token else "mean"

    def _try(self) -> dict[str, Tensor]:
        blank = torch.zeros(1, 3, self.input.size, self.input.size, dtype=torch.uint8)
        try:
            outputs = self({"images": blank})
        except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
            raise TeacherError(
                f"{self.name} cannot give pool {self._pool!r} at {self.input.size} pixels: {error}"
            ) from error
        return outputs

    def _blank(self) -> Tensor:
        return torch.zeros(1, 3, self.input.size, self.input.size)


def _pooled(body: Any, pool: str) -> Tensor:
    if pool == "pooler":
        return body.pooler_output.flatten(1)  # (batch, hidden, 1, 1) of convolutional networks
    hidden = body.last_hidden_state
    if hidden.ndim == 4:
        if pool == "cls":
            raise ValueError("a convolutional network has no class token")
        return hidden.mean(dim=(2, 3))
    return hidden[:, 0] if pool == "cls" else hidden.mean(dim=1)


def _resizing(network: Network, size: int) -> dict[str, Any]:
    native = getattr(network.config, "image_size", None)
    can_interpolate = "interpolate_pos_encoding" in inspect.signature(network.model.forward).parameters
    return {"interpolate_pos_encoding": True} if can_interpolate and native not in (size, [size, size], None) else {}


def _image_input(folder: Path, img_size: int | None, crop_pct: float | None) -> ImageInput:
    try:
        processor = transformers.AutoImageProcessor.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # as many classes as there are processors
        raise TeacherError(f"{folder} has no preprocessor_config.json that transformers can read") from error
    try:
        found = ImageInput(
            **_geometry(processor),
            interpolation=_interpolation(processor),
            mean=tuple(processor.image_mean) if processor.do_normalize else (0.0, 0.0, 0.0),
            std=tuple(processor.image_std) if processor.do_normalize else (1.0, 1.0, 1.0),
        )
        _check_against(processor, found)
        return replace(found, size=img_size or found.size, crop_pct=crop_pct or found.crop_pct)
    except UsageError as error:
        raise TeacherError(f"the preprocessing of {folder.name} is not supported: {error.message}") from error


def _geometry(processor: Any) -> dict[str, Any]:
    size = dict(processor.size)
    shorter, height, width = (size.get(name) for name in ("shortest_edge", "height", "width"))
    if getattr(processor, "crop_pct", None) and shorter and not processor.do_center_crop:
        if shorter < _WARPED_FROM:
            return {"size": shorter, "crop_pct": processor.crop_pct, "crop_mode": "center"}
        return {"size": shorter, "crop_pct": 1.0, "crop_mode": "squash"}
    scaled = shorter or height
    crop = dict(processor.crop_size) if processor.do_center_crop else {"height": height, "width": width}
    if not scaled or height != width or not crop["height"] or crop["height"] != crop["width"]:
        raise TeacherError(f"size {size} with crop {crop} gives no square image")
    return {
        "size": crop["height"],
        "crop_pct": _fraction(crop["height"], scaled),
        "crop_mode": "center" if shorter else "squash",
    }


def _fraction(size: int, scaled: int) -> float:
    # the crop fraction from which int(size / fraction) gives the same size before the crop, whatever was rounded
    fraction = size / scaled
    return fraction if int(size / fraction) == scaled else math.nextafter(fraction, 0)


def _interpolation(processor: Any) -> str:
    return Image.Resampling(int(processor.resample)).name.lower()


def _check_against(processor: Any, found: ImageInput) -> None:
    # a processor may do anything in code; on a smooth image the two must agree
    noise = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize((12 * 60, 8 * 60), Image.Resampling.BICUBIC)
    expected = processor(image, return_tensors="pt")["pixel_values"][0]
    actual = found.normalise(torch.from_numpy(found.prepare(np.asarray(image)))[None])[0]
    if expected.shape != actual.shape or (expected - actual).abs().mean() > _TOLERANCE * expected.std():
        raise TeacherError(f"{type(processor).__name__} does more than resize, crop and normalise")
