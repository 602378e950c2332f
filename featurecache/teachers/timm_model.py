"""Any image model that timm knows, from the hub, a local folder or a safetensors file."""

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data.config import resolve_model_data_config
from timm.data.imagenet_info import ImageNetInfo
from torch import Tensor

from featurecache.errors import TeacherError, UsageError
from featurecache.fingerprint import hash_tensors
from featurecache.inputs import ImageInput, Inputs
from featurecache.layers import Taps, layer_specs, timm_taps
from featurecache.teachers.weights import (
    commit_of,
    fetch_file,
    is_commit,
    license_name,
    split_revision,
    tensor_shapes,
    weights_file,
)
from featurecache.types import Json, OutputSpec

__all__ = ["TimmTeacher", "build", "build_to_fit", "image_input", "locate"]

_STATED_ELSEWHERE = ("num_classes", "global_pool", "in_chans", "img_size")


class TimmTeacher:
    """ "embedding" (dim,): what the model's head gives before its classifier; "logits" (classes,) where it has one."""

    def __init__(
        self,
        model: str,
        *,
        weights: str | Path | None = None,
        img_size: int | None = None,
        crop_pct: float | None = None,
        model_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        """`model` is NAME, NAME.TAG, NAME@COMMIT, or a folder in timm's hub format; `weights` replaces its weights.

        Raises TeacherError where it cannot be found, its weights do not fit, or its preprocessing is not supported.
        """
        self._kwargs = dict(model_kwargs or {})
        img_size = img_size or self._kwargs.pop("img_size", None)
        if self._kwargs.get("in_chans", 3) != 3:
            raise TeacherError(f"a teacher sees RGB images: in_chans cannot be {self._kwargs['in_chans']}")
        source, file = locate(model, weights)
        self.revision = commit_of(file)
        """The hub commit that was loaded, if any: provenance, not identity."""
        network = build(source, file, self._kwargs, is_exact=weights is not None)
        self._weights_sha256 = hash_tensors(network.state_dict())  # before any resizing, whose last bits vary
        self.input = image_input(network, img_size, crop_pct)
        _resize(network, self.input.size)
        self._network: Any = network.eval().requires_grad_(False)
        self.license = None if weights else license_name(network.pretrained_cfg.get("license"))
        """Of the weights, as timm's table or the folder states it: provenance too."""
        self._taps = timm_taps(network)
        self._architecture: str = network.pretrained_cfg["architecture"]
        tag = network.pretrained_cfg.get("tag")
        self.name = f"{self._architecture}.{tag}" if self.revision and tag else self._architecture
        self._kwargs = {**_folder_kwargs(source), **self._kwargs}
        self.outputs = self._output_specs()

    def __call__(self, batch: Inputs, further: Sequence[str] = ()) -> dict[str, Tensor]:
        """{"images": uint8 (batch, 3, size, size)} -> embedding (batch, dim), logits (batch, classes), and what is
        asked for of layers, (batch, tokens, width)."""
        taps = Taps({name: self._taps[name] for name in further})
        try:
            with torch.inference_mode():
                features = self._network.forward_features(self.input.normalise(batch["images"]))
                # timm's own head runs twice, cheaply: a classifier may be a convolution, a pair, or none of its last
                # steps
                outputs = {"embedding": self._network.forward_head(features, pre_logits=True)}
                if self._network.num_classes > 0:
                    outputs["logits"] = self._network.forward_head(features)
                return outputs | taps.take()
        finally:
            taps.close()

    @cached_property
    def further(self) -> tuple[OutputSpec, ...]:
        """Of a ViT "hidden.L" (tokens, width) and "qkv.L" (tokens, 3 * width), class and register tokens first; of
        others "hidden.K" (height * width, channels), the map of stage K."""
        size, device = self.input.size, next(self._network.parameters()).device
        blank = torch.zeros(1, 3, size, size, dtype=torch.uint8, device=device)
        return layer_specs(
            self._taps, {n: v for n, v in self({"images": blank}, [*self._taps]).items() if n in self._taps}
        )

    def to(self, device: torch.device | str) -> "TimmTeacher":
        """Move the network; returns itself."""
        self._network.to(device)
        return self

    def identity(self) -> Json:
        """Architecture, what changes its computation, and its weights: the same however they were loaded."""
        return {
            "library": "timm",
            "model": self._architecture,
            "config": {
                "num_classes": self._network.num_classes,
                "global_pool": _global_pool(self._network),
                "img_size": self.input.size,
                "model_kwargs": {k: v for k, v in self._kwargs.items() if k not in _STATED_ELSEWHERE},
            },
            "outputs": {"embedding": "pre_logits"},
            "weights_sha256": self._weights_sha256,
        }

    def _output_specs(self) -> tuple[OutputSpec, ...]:
        size = self.input.size
        try:
            outputs = self({"images": torch.zeros(1, 3, size, size, dtype=torch.uint8)})
        except (AssertionError, IndexError, RuntimeError, ValueError) as error:
            raise TeacherError(f"{self.name} cannot run on {size}-pixel images: {error}") from error
        shapes = {name: tuple(output.shape[1:]) for name, output in outputs.items()}
        if len(shapes["embedding"]) != 1:
            raise TeacherError(f"{self.name} does not pool: its embedding has shape {shapes['embedding']}")
        classes = _class_names(self._network)
        return tuple(OutputSpec(name, shape, classes if name == "logits" else ()) for name, shape in shapes.items())


def locate(model: str, weights: str | Path | None) -> tuple[str, Path]:
    """(What timm calls the model, the safetensors file to load). Raises TeacherError."""
    if Path(model).is_dir():
        source = f"local-dir:{Path(model).resolve()}"
        if weights is None and not (Path(model) / "model.safetensors").is_file():
            raise TeacherError(
                f"{model} has no model.safetensors", hint="only safetensors are loaded; convert the weights"
            )
        return source, weights_file(weights or Path(model) / "model.safetensors")
    name, revision = split_revision(model)
    if revision is not None and not is_commit(revision):
        raise TeacherError(
            f"{revision!r} is no commit of 40 hexadecimal digits", hint="write NAME@COMMIT, or NAME alone"
        )
    architecture, _, tag = name.partition(".")
    known = timm.list_pretrained(f"{architecture}.*") if timm.is_model(architecture) else []
    if not timm.is_model(architecture) or (tag and name not in known):
        raise TeacherError(f"timm has no model {name!r}", hint=f"its tags are {', '.join(known)}" if known else "")
    if weights is not None:
        return name, weights_file(weights)
    repository = getattr(timm.get_pretrained_cfg(name), "hf_hub_id", None)
    if not repository:
        raise TeacherError(f"{name} has no weights on the hub", hint="give them with --weights FILE.safetensors")
    return name, fetch_file(repository, "model.safetensors", revision=revision)


def build(source: str, file: Path, kwargs: Mapping[str, Any], *, is_exact: bool) -> Any:
    """The timm model with the weights of the file, every one of them; `is_exact`: none resampled. Raises TeacherError.

    `source` and `file` are what `locate` gives.
    """
    # timm loads leniently, with random numbers for what is missing, if num_classes differs from its table: so the table
    # is told. Whatever the source, the file goes through timm's own conversion of old checkpoints.
    table = {"file": str(file), "source": "", "custom_load": False}
    if kwargs.get("num_classes") is not None:
        table["num_classes"] = kwargs["num_classes"]
    try:
        network: Any = timm.create_model(source, pretrained=True, pretrained_cfg_overlay=table, **kwargs)
    except TypeError as error:
        raise TeacherError(f"timm cannot build {source}: {error}", hint="check --model-kwargs") from error
    except Exception as error:  # a checkpoint that is not the model's fails anywhere in timm's conversions
        expected = _shapes(_build_untrained(source, kwargs))
        raise TeacherError(f"{file.name} does not fit {source}: {_mismatch(expected, tensor_shapes(file))}") from error
    if is_exact and not network.pretrained_cfg.get("label_offset"):
        # timm resamples positions and patches to fit; weights of another size are more likely the wrong file
        found = tensor_shapes(file)
        common = {name: shape for name, shape in _shapes(network).items() if name in found}
        if differing := _mismatch(common, {name: found[name] for name in common}):
            raise TeacherError(f"{file.name} does not fit {source}: {differing}")
    return network


def build_to_fit(source: str, file: Path, *, is_exact: bool) -> Any:
    """The same for a classifier that will be replaced: with `is_exact` the file may have one of any size, or none."""
    if not is_exact:
        return build(source, file, {}, is_exact=False)
    config = _build_untrained(source, {}).pretrained_cfg
    names = config.get("classifier") or ()
    first = names if isinstance(names, str) else next(iter(names), "")
    (classes, *_) = tensor_shapes(file).get(f"{first}.weight", (0,))
    return build(source, file, {} if config.get("label_offset") else {"num_classes": classes}, is_exact=True)


def _build_untrained(source: str, kwargs: Mapping[str, Any]) -> Any:
    try:
        return timm.create_model(source, **kwargs)
    except Exception as error:  # timm asserts, raises and lets torch raise
        raise TeacherError(f"timm cannot build {source}: {error}", hint="check --model-kwargs") from error


def _shapes(network: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def _mismatch(expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]) -> str:
    kinds = {
        "missing": [name for name in expected if name not in found],
        "unexpected": [name for name in found if name not in expected],
        "of another shape": [name for name in expected if name in found and expected[name] != found[name]],
    }
    return "; ".join(f"{len(names)} {kind} ({', '.join(names[:3])})" for kind, names in kinds.items() if names)


def image_input(network: Any, img_size: int | None, crop_pct: float | None) -> ImageInput:
    """What a timm model takes in, as its own evaluation transform has it. Raises TeacherError where that is unusual."""
    config = resolve_model_data_config(network, args={"img_size": img_size, "crop_pct": crop_pct})
    _, height, width = config["input_size"]
    if height != width:
        raise TeacherError(
            f"images of {height} x {width} pixels are not supported", hint="--img-size makes them square"
        )
    try:
        return ImageInput(
            size=height,
            crop_pct=config["crop_pct"],
            interpolation=config["interpolation"],
            crop_mode=config["crop_mode"],
            mean=tuple(config["mean"]),
            std=tuple(config["std"]),
        )
    except UsageError as error:
        raise TeacherError(f"its preprocessing is not supported: {error.message}", hint=error.hint) from error


def _resize(network: Any, size: int) -> None:
    native = tuple(network.pretrained_cfg["input_size"][-2:])
    if native == (size, size) or not hasattr(network, "set_input_size"):
        return  # convolutions take any size; the trial run tells of models that do not
    try:
        network.set_input_size(img_size=(size, size))
    except (AssertionError, RuntimeError, ValueError) as error:
        raise TeacherError(f"this model cannot be resized to {size} pixels: {error}") from error


def _folder_kwargs(source: str) -> dict[str, Any]:
    kind, _, folder = source.partition(":")
    return json.loads((Path(folder) / "config.json").read_text()).get("model_args", {}) if kind == "local-dir" else {}


def _global_pool(network: Any) -> str | None:
    for owner in (getattr(network, "head", None), network):
        pool = getattr(owner, "global_pool", None)
        pool = getattr(pool, "pool_type", pool)
        if isinstance(pool, str):
            return pool
    return None


def _class_names(network: Any) -> tuple[str, ...]:
    # a folder's own label names, else WordNet ids where the tag says that the last training was on imagenet-1k
    config, count = network.pretrained_cfg, network.num_classes
    names = config.get("label_names") or ()
    if isinstance(names, Mapping):
        names = [names[str(index)] for index in range(count) if str(index) in names]
    if len(names) == count:
        return tuple(names)
    data_sets = [word for word in (config.get("tag") or "").split("_") if word.startswith("in") and word.endswith("k")]
    is_imagenet = count == 1000 and data_sets[-1:] == ["in1k"]
    return tuple(ImageNetInfo("imagenet-1k").label_names()) if is_imagenet else ()
