"""Any timm model as a backbone, without its classifier (Wightman, github.com/huggingface/pytorch-image-models)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models import get_arch_name, group_parameters
from torch import Tensor, nn

from featurecache.errors import UsageError
from featurecache.inputs import ImageInput
from featurecache.layers import Taps, layer_specs, timm_taps
from featurecache.types import Json, OutputSpec

__all__ = ["TimmBackbone", "size_arguments"]


class TimmBackbone(nn.Module):
    """uint8 images (batch, 3, size, size) -> what timm's own classifier would read, (batch, features)."""

    def __init__(self, model: str, input: ImageInput) -> None:
        """`model` is a name that timm knows; its weights are random."""
        super().__init__()
        self.name = model
        self.input = input
        self.network = _create(model, input)
        self.features = _output_width(model, self.network, input)
        self._taps = Taps({})

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """{"images": uint8 (batch, 3, size, size)} -> (batch, features)."""
        features: Tensor = self.network(self.input.normalise(inputs["images"]))
        return features

    def depths(self) -> dict[str, int]:
        """0 for the stem, then block by block, as timm groups them."""
        network: Any = self.network
        depths = group_parameters(network, network.group_matcher(coarse=False), reverse=True)
        return {f"network.{name}": depth for name, depth in depths.items()}

    def layers(self) -> dict[str, OutputSpec]:
        """Of a ViT "hidden.L" (tokens, width) and "qkv.L" (tokens, 3 * width), its class token first; of others
        "hidden.K" (height * width, channels). One image is run to see."""
        every = timm_taps(self.network)
        taps = Taps(every)
        try:
            _trial(self.network, self.input)
            return {spec.name: spec for spec in layer_specs(every, taps.take())}
        finally:
            taps.close()

    def keep(self, names: Sequence[str]) -> None:
        """From now on keep these of every call."""
        self._taps.close()
        every = timm_taps(self.network)
        self._taps = Taps({name: every[name] for name in names})

    def kept(self) -> dict[str, Tensor]:
        """(batch, tokens, width) of the last call, by name, once."""
        return self._taps.take()

    def to_json(self) -> Json:
        """The model's name."""
        return {"kind": "timm", "model": self.name}

    def load_pretrained(self, source: str) -> None:
        """Start from trained weights: a name that timm has weights for, or a `.safetensors` file. Raises UsageError."""
        if source.endswith(".safetensors"):
            weights = _read(source)
        else:
            weights = _pretrained(self.name, source, self.input).state_dict()
        _load(self.network, weights, source)


def size_arguments(model: str, input: ImageInput) -> dict[str, Any]:
    """The arguments of `timm.create_model` that make a model take images of the input's size."""
    configuration = timm.get_pretrained_cfg(model)
    fixed = configuration is not None and configuration.fixed_input_size
    return {"img_size": input.size} if fixed else {}  # only such models know the option


def _create(model: str, input: ImageInput, *, pretrained: bool = False) -> nn.Module:
    return timm.create_model(model, pretrained=pretrained, num_classes=0, **size_arguments(model, input))


def _output_width(model: str, network: nn.Module, input: ImageInput) -> int:
    """Measured: `num_features` of some timm models is the width before their last layer, not after it."""
    try:
        output = _trial(network, input)
    except (AssertionError, RuntimeError, ValueError) as error:
        raise UsageError(
            f"{model} cannot take images of {input.size} pixels: {error}", hint="choose another size or student"
        ) from error
    if output.ndim != 2:
        raise UsageError(f"{model} gives no pooled features", hint="choose a student that timm pools")
    return output.shape[1]


def _trial(network: nn.Module, input: ImageInput) -> Tensor:
    """What it gives for one black image, without a trace in it."""
    training, device = network.training, next(network.parameters()).device
    try:
        with torch.no_grad():
            output: Tensor = network.eval()(torch.zeros(1, 3, input.size, input.size, device=device))
    finally:
        network.train(training)
    return output


def _read(file: str) -> dict[str, Tensor]:
    if not Path(file).is_file():
        raise UsageError(f"there is no file {file!r} to start the student from")
    try:
        return load_file(file)
    except SafetensorError as error:
        raise UsageError(f"{file} is not a whole safetensors file: {error}") from error


def _pretrained(model: str, source: str, input: ImageInput) -> nn.Module:
    source = source.removeprefix("timm:")
    if get_arch_name(source) != get_arch_name(model):
        raise UsageError(
            f"the student {model} cannot start from the weights of {source}",
            hint=f"give {model}, one of `timm.list_pretrained('{get_arch_name(model)}.*')`, or a .safetensors file",
        )
    try:
        return _create(source, input, pretrained=True)
    except (OSError, RuntimeError) as error:
        raise UsageError(
            f"cannot load the weights of {source}: {error}", hint="without a network, give a .safetensors file"
        ) from error


def _load(network: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Copy the weights in; more than the network has (a classifier) is left out, less is refused."""
    own = network.state_dict()
    wrong = [name for name, value in own.items() if name not in weights or weights[name].shape != value.shape]
    if wrong:
        raise UsageError(
            f"the weights in {source} do not fit: {len(wrong)} of {len(own)} tensors are missing or differ in shape,"
            f" the first is {wrong[0]}",
            hint="they must be of the same timm model and image size",
        )
    network.load_state_dict({name: weights[name] for name in own})
