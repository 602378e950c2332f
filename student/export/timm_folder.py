"""A folder in the format of timm's models on the hub: plain `timm.create_model("local-dir:FOLDER")` loads it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import get_arch_name
from torch import Tensor, nn

from featurecache.errors import UsageError
from featurecache.inputs import ImageInput
from featurecache.types import Json
from student.export.base import (
    HEADS_FILE,
    USAGE_HEADS,
    Exported,
    check_agreement,
    head_weights,
    largest_difference,
    outputs_of,
    trial_batch,
    write_weights,
)
from student.models.student import Student
from student.models.timm_backbone import TimmBackbone, size_arguments

__all__ = ["export_timm"]

_TOLERANCE = 1e-5
_CLASSIFIERS = ("labels", "logits")
"""Heads that may become timm's classifier, the first there is: classes of the data before those of a teacher."""
_KEPT = ("fixed_input_size", "first_conv", "classifier", "pool_size", "global_pool")
"""What timm's table says of an architecture; its tag and licence are of other weights."""

_USAGE = """\
import timm
import torch
from PIL import Image

model = timm.create_model("local-dir:.", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
images = transform(Image.open("photo.jpg").convert("RGB")).unsqueeze(0)
with torch.inference_mode():
    features = model.forward_head(model.forward_features(images), pre_logits=True)
"""
_USAGE_CLASSIFIER = """\
    logits = model(images)
classes = model.pretrained_cfg.get("label_names")
"""


def export_timm(student: Student, folder: Path, *, facts: Json, class_names: Mapping[str, Sequence[str]]) -> Exported:
    """config.json, model.safetensors and the heads that are not timm's classifier; see `Exporter`."""
    backbone = student.backbone
    if not isinstance(backbone, TimmBackbone):
        hint = "write --to transformers, safetensors or onnx"
        raise UsageError(f"timm has image models only, and the student {backbone.name} reads texts", hint=hint)
    wanted = next((name for name in _CLASSIFIERS if name in student.widths), None)
    network = _with_classifier(student, backbone, wanted) if wanted else None
    classifier = wanted if network is not None else None
    heads = tuple(name for name in student.widths if name != classifier)
    network = backbone.network if network is None else network
    config = _config(backbone, network, class_names.get(classifier or "", ()))
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    write_weights(folder / "model.safetensors", network.state_dict())
    write_weights(folder / HEADS_FILE, head_weights(student, heads))
    loaded = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    batch = trial_batch(backbone.input, 2)
    expected = {name: value for name, value in outputs_of(student, batch).items() if name not in heads}
    found = _run(loaded, backbone.input.normalise(batch["images"]), classifier)
    usage = _USAGE + (_USAGE_CLASSIFIER if classifier else "") + (USAGE_HEADS if heads else "")
    notes = (
        [f"timm's `{backbone.name}` cannot hold the head `{wanted}` as its classifier"] if wanted != classifier else []
    )
    return Exported(
        usage=usage,
        largest_difference=check_agreement(found, expected, tolerance=_TOLERANCE),
        classifier=classifier,
        heads=heads,
        notes=tuple(notes),
    )


def _with_classifier(student: Student, backbone: TimmBackbone, head: str) -> nn.Module | None:
    """The network with a head as its own classifier; None where that is no linear layer upon the same features."""
    model, input = backbone.name, backbone.input
    network: Any = timm.create_model(model, num_classes=student.widths[head], **size_arguments(model, input)).eval()
    layer = network.get_classifier()
    if not isinstance(layer, nn.Linear) or layer.bias is None or layer.in_features != backbone.features:
        return None
    place = next(name for name, module in network.named_modules() if module is layer)
    own = {f"{place}.{key}": value for key, value in student.heads[head].state_dict().items()}
    weights = {**backbone.network.state_dict(), **own}
    if weights.keys() != network.state_dict().keys():
        return None
    network.load_state_dict(weights)
    batch = trial_batch(input, 2)
    found, expected = _run(network, input.normalise(batch["images"]), head), outputs_of(student, batch)
    fits = all(largest_difference(value, expected[name]) <= _TOLERANCE for name, value in found.items())
    return network if fits else None


def _run(network: Any, images: Tensor, classifier: str | None) -> dict[str, Tensor]:
    """As `_USAGE` runs it."""
    with torch.inference_mode():
        found = {"features": network.forward_head(network.forward_features(images), pre_logits=True)}
        return {**found, classifier: network(images)} if classifier else found


def _config(backbone: TimmBackbone, network: Any, labels: Sequence[str]) -> Json:
    table = {name: network.pretrained_cfg[name] for name in _KEPT if name in network.pretrained_cfg}
    return {
        "architecture": get_arch_name(backbone.name),
        "num_classes": network.num_classes,
        "num_features": network.num_features,
        **({"label_names": list(labels)} if labels else {}),
        "model_args": size_arguments(backbone.name, backbone.input),
        "pretrained_cfg": {
            **table,
            "custom_load": False,
            "num_classes": network.num_classes,
            **_preprocessing(backbone.input),
        },
    }


def _preprocessing(input: ImageInput) -> Json:
    three = {"mean": list(input.mean), "std": list(input.std)}
    return {
        "input_size": [3, input.size, input.size],
        "interpolation": input.interpolation,
        "crop_pct": input.crop_pct,
        "crop_mode": input.crop_mode,
        **{name: values * 3 if len(values) == 1 else values for name, values in three.items()},
    }
