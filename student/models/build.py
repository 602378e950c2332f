"""Which students there are, and how a name becomes a backbone."""

import difflib
import itertools
import re
from collections.abc import Mapping
from typing import Any

import timm

from featurecache.errors import UnknownNameError, UsageError
from featurecache.inputs import ImageInput, TextInput
from featurecache.types import Modality
from student.models.base import Backbone
from student.models.bert import BertBackbone
from student.models.timm_backbone import TimmBackbone

__all__ = ["DEFAULT_STUDENTS", "PUBLISHED_BERTS", "STUDENTS", "backbone_from_json", "build_backbone"]

PUBLISHED_BERTS = tuple(itertools.product((2, 4, 6, 8, 10, 12), (128, 256, 512, 768)))
"""Layers and width of the 24 pre-trained BERTs of Turc et al., arXiv 1908.08962."""

STUDENTS: dict[str, Modality] = {
    "mobilenetv3_small_100": "image",
    "mobilenetv3_large_100": "image",
    "mobilenetv2_100": "image",
    "efficientnet_b0": "image",
    "resnet18": "image",
    "vit_tiny_patch16_224": "image",
    **{f"bert:{layers}x{width}": "text" for layers, width in PUBLISHED_BERTS},
}
"""Good choices and what they take in; any other timm name and any bert:LAYERSxWIDTH is a student too."""

DEFAULT_STUDENTS: dict[Modality, str] = {"image": "mobilenetv3_small_100", "text": "bert:4x256"}

_BERT = re.compile(r"bert:(\d+)x(\d+)")


def build_backbone(name: str, input: ImageInput | TextInput, *, init_from: str | None = None) -> Backbone:
    """The backbone of that name: `bert:LAYERSxWIDTH`, or a timm name with or without `timm:`.

    Its weights are random, or with `init_from` those of a trained model of the same shape: for images a timm name or a
    `.safetensors` file, for text a transformers folder or hub name. Raises UsageError.
    """
    backbone = _build(name, input)
    if init_from is not None:
        backbone.load_pretrained(init_from)
    return backbone


def backbone_from_json(value: Mapping[str, Any], input: ImageInput | TextInput) -> Backbone:
    """The backbone that `to_json` described, with random weights. Raises UsageError."""
    if value["kind"] == "timm":
        return _build(f"timm:{value['model']}", input)
    name = f"bert:{value['layers']}x{value['width']}"
    if not isinstance(input, TextInput):
        raise _misfit(name, "text", input)
    if input.vocabulary_size != value["vocabulary"]:
        raise UsageError(
            f"{name} was made for a vocabulary of {value['vocabulary']}, this tokenizer has {input.vocabulary_size}",
            hint="use the tokenizer.json that was saved with the student",
        )
    return BertBackbone(value["layers"], value["width"], input, positions=value["positions"])


def _build(name: str, input: ImageInput | TextInput) -> TimmBackbone | BertBackbone:
    if name.startswith("bert:"):
        sizes = _BERT.fullmatch(name)
        if sizes is None:
            raise UsageError(f"cannot read the student {name!r}", hint="write bert:LAYERSxWIDTH, such as bert:4x256")
        if not isinstance(input, TextInput):
            raise _misfit(name, "text", input)
        return BertBackbone(int(sizes[1]), int(sizes[2]), input)
    model = name.removeprefix("timm:")
    if not timm.is_model(model) or ("." in model and not timm.models.is_model_pretrained(model)):
        near = difflib.get_close_matches(model, [*STUDENTS, *timm.list_models(), *timm.list_pretrained()], n=1)
        raise UnknownNameError("student", name, near or STUDENTS)
    if not isinstance(input, ImageInput):
        raise _misfit(name, "image", input)
    return TimmBackbone(model, input)


def _misfit(name: str, takes: Modality, input: ImageInput | TextInput) -> UsageError:
    fitting = ", ".join(student for student, modality in STUDENTS.items() if modality == input.modality)
    family = "any timm model" if input.modality == "image" else "any bert:LAYERSxWIDTH"
    return UsageError(
        f"the student {name} takes {takes} inputs, but the data is {input.modality}",
        hint=f"students that fit: {fitting}, or {family}",
    )
