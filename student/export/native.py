"""A trained student on disk and back: weights in safetensors, everything else as JSON."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from featurecache.errors import CorruptCacheError, UsageError
from featurecache.inputs import TextInput, input_from_json
from featurecache.types import Json
from student.checkpoint import load_weights, save_tensors
from student.export.base import Exported, check_agreement, outputs_of, trial_batch
from student.models.build import backbone_from_json
from student.models.student import Student

__all__ = ["export_native", "load_student", "save_student"]

_USAGE_IMAGE = """\
import numpy as np
import torch
from PIL import Image
from student.export import load_student

student, facts = load_student(".")
image = np.asarray(Image.open("photo.jpg").convert("RGB"))
network_input = student.backbone.input
with torch.inference_mode():
    outputs = student(network_input.collate([network_input.prepare(image)]))
"""
_USAGE_TEXT = """\
import torch
from student.export import load_student

student, facts = load_student(".")
texts = ["one text", "and another"]
network_input = student.backbone.input
with torch.inference_mode():
    outputs = student(network_input.collate([network_input.prepare(text) for text in texts]))
"""


def save_student(student: Student, folder: Path, facts: Json, *, weights: Mapping[str, Tensor] | None = None) -> None:
    """Write student.safetensors, tokenizer.json for text, and last student.json, which says that the rest is whole.

    `facts` are kept beside what builds the student again: the cache's digest, class names. `weights` are the student's
    own unless they are given, as those of a student that is sharded must be.
    """
    folder.mkdir(parents=True, exist_ok=True)
    network_input = student.backbone.input
    save_tensors(folder / "student.safetensors", student.state_dict() if weights is None else weights)
    if isinstance(network_input, TextInput):
        (folder / "tokenizer.json").write_text(network_input.tokenizer_json, encoding="utf-8")
    value = {
        "backbone": student.backbone.to_json(),
        "input": network_input.to_json(),
        "heads": student.widths,
        "shared": dict(student.shared),
        **facts,
    }
    partial = folder / "student.json.partial"
    partial.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(folder / "student.json")


def load_student(folder: Path | str) -> tuple[Student, Json]:
    """The student, in eval mode, and its facts. Raises UsageError if there is none, CorruptCacheError if damaged."""
    folder = Path(folder)
    file = folder / "student.json"
    if not file.is_file():
        raise UsageError(f"there is no trained student in {folder}", hint="finish the run with --resume")
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
        tokenizer = folder / "tokenizer.json"
        text = tokenizer.read_text(encoding="utf-8") if value["input"]["kind"] == "text" else None
        backbone = backbone_from_json(value["backbone"], input_from_json(value["input"], text))
        student = Student(backbone, value["heads"], shared=value["shared"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptCacheError(f"{folder} does not hold a whole student: {error}") from error
    load_weights(folder / "student.safetensors", student)
    return student.eval(), value


def export_native(student: Student, folder: Path, *, facts: Json, class_names: Mapping[str, Sequence[str]]) -> Exported:
    """The same files again; see `Exporter`."""
    own = ("backbone", "input", "heads", "shared")
    save_student(student, folder, {name: value for name, value in facts.items() if name not in own})
    batch = trial_batch(student.backbone.input, 2)
    loaded, _ = load_student(folder)
    difference = check_agreement(outputs_of(loaded, batch), outputs_of(student, batch), tolerance=0.0)
    is_text = isinstance(student.backbone.input, TextInput)
    return Exported(usage=_USAGE_TEXT if is_text else _USAGE_IMAGE, largest_difference=difference)
