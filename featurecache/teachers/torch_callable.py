"""Any torch module or function of your own, named as package.module:attribute."""

import hashlib
import importlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from featurecache.errors import TeacherError
from featurecache.fingerprint import hash_tensors
from featurecache.inputs import ImageInput, Inputs, TextInput
from featurecache.teachers.weights import weights_file
from featurecache.types import Json, OutputSpec

__all__ = ["TorchTeacher"]


class TorchTeacher:
    """What your network gives: a tensor (batch, dim) is "embedding"; a dictionary names its own outputs.

    What it makes of texts as (batch, tokens, dim) is kept for each token.
    """

    def __init__(
        self,
        target: str,
        *,
        weights: str | Path | None = None,
        img_size: int | None = None,
        crop_pct: float | None = None,
        model_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        """`target` is package.module:attribute: an nn.Module, or what gives one or a function when it is called.

        The network maps float32 normalised images (batch, 3, size, size), or keyword arguments ids and mask, both
        (batch, tokens), to tensors. Its own `input` (ImageInput or TextInput) says which; without one it takes images
        as ImageNet models do. Raises TeacherError.
        """
        self._kwargs = dict(model_kwargs or {})
        self._network = _make(target, self._kwargs)
        self._target = target
        self.name = target.partition(":")[2]
        if weights is not None:
            _load(self._network, weights)
        if isinstance(self._network, nn.Module):
            self._network.eval().requires_grad_(False)
        self.input = _input_of(self._network, img_size, crop_pct)
        self.outputs = self._output_specs()
        self._content = _content(self._network, target)

    def __call__(self, batch: Inputs) -> dict[str, Tensor]:
        """One pass: each output (batch, *shape), embedding first."""
        with torch.inference_mode():
            if isinstance(self.input, ImageInput):
                outputs = self._network(self.input.normalise(batch["images"]))
            else:
                outputs = self._network(ids=batch["ids"], mask=batch["mask"])
        named = outputs if isinstance(outputs, Mapping) else {"embedding": outputs}
        return {name: named[name] for name in sorted(named, key=lambda name: (name != "embedding", name))}

    def to(self, device: torch.device | str) -> "TorchTeacher":
        """Move the network, if it is a module; returns itself."""
        if isinstance(self._network, nn.Module):
            self._network.to(device)
        return self

    def identity(self) -> Json:
        """The target's name, its arguments, and the hashes of its module's file and, if it has some, of its weights.

        What that file imports is not seen: a change there goes unnoticed.
        """
        return {
            "library": "torch",
            "model": self._target,
            "config": {"model_kwargs": self._kwargs},
            "outputs": [spec.name for spec in self.outputs],
            **self._content,
        }

    def _output_specs(self) -> tuple[OutputSpec, ...]:
        if isinstance(self.input, ImageInput):
            batch: Inputs = {"images": torch.zeros(2, 3, self.input.size, self.input.size, dtype=torch.uint8)}
        else:
            batch = self.input.collate([self.input.prepare("a trial"), self.input.prepare("a longer trial of two")])
        try:
            outputs = self(batch)
        except Exception as error:  # it is somebody's own code
            raise TeacherError(
                f"{self._target} fails on a trial batch of 2: {type(error).__name__}: {error}"
            ) from error
        for name, output in outputs.items():
            if not isinstance(output, Tensor) or not output.is_floating_point() or output.ndim < 2 or len(output) != 2:
                got = f"{output.dtype} {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
                raise TeacherError(f"{self._target} gives {got} as {name!r}", hint="give floating point (batch, ...)")
        return tuple(self._spec(name, output, batch) for name, output in outputs.items())

    def _spec(self, name: str, output: Tensor, batch: Inputs) -> OutputSpec:
        if isinstance(self.input, TextInput) and output.ndim == 3 and output.shape[:2] == batch["mask"].shape:
            return OutputSpec(name, (output.shape[2],), longest=self.input.max_length)
        return OutputSpec(name, tuple(output.shape[1:]))


def _make(target: str, kwargs: Mapping[str, Any]) -> Any:
    module, _, path = target.partition(":")
    if not module or not path:
        raise TeacherError(f"{target!r} is not package.module:attribute")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # as `python -m` does; kept, for what the module imports later
    try:
        found: Any = importlib.import_module(module)
        for name in path.split("."):
            found = getattr(found, name)
        network = found if isinstance(found, nn.Module) else found(**kwargs)
    except Exception as error:  # as in a trial batch
        raise TeacherError(f"cannot make a teacher of {target}: {type(error).__name__}: {error}") from error
    if not callable(network):
        raise TeacherError(f"{target} gives {type(network).__name__}, which is neither a module nor a function")
    return network


def _load(network: Any, weights: str | Path) -> None:
    file = weights_file(weights)
    if not isinstance(network, nn.Module):
        raise TeacherError("only an nn.Module can be given --weights")
    try:
        network.load_state_dict(load_file(file))
    except RuntimeError as error:
        raise TeacherError(f"{file.name} does not fit: {error}") from error


def _input_of(network: Any, img_size: int | None, crop_pct: float | None) -> ImageInput | TextInput:
    own = getattr(network, "input", None)
    if own is None:
        return ImageInput(size=img_size or 224, crop_pct=crop_pct or 0.875)
    if not isinstance(own, ImageInput | TextInput):
        raise TeacherError(f"its `input` is {type(own).__name__}, neither ImageInput nor TextInput")
    if img_size or crop_pct:
        raise TeacherError("it declares its own `input`, so --img-size and --crop-pct have nothing to say")
    return own


def _content(network: Any, target: str) -> dict[str, str]:
    file = getattr(sys.modules[target.partition(":")[0]], "__file__", None)
    if file is None or not Path(file).is_file():
        raise TeacherError(f"the module of {target} has no file to tell it by", hint="write it into a .py file")
    content = {"source_sha256": hashlib.sha256(Path(file).read_bytes()).hexdigest()}
    state = network.state_dict() if isinstance(network, nn.Module) else {}
    return {**content, "weights_sha256": hash_tensors(state)} if state else content
