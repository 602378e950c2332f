"""One ONNX file of the whole student: normalisation, backbone and heads, tried in onnxruntime."""

import importlib.util
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from featurecache.errors import FeatureCacheError, UsageError
from featurecache.inputs import ImageInput, TextInput
from featurecache.types import Json
from student.export.base import Exported, check_agreement, outputs_of, trial_batch
from student.models.student import Student

__all__ = ["export_onnx"]

_TOLERANCE = 1e-4
"""Wider than elsewhere: onnxruntime has its own kernels, which add in another order."""
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_FILE = "model.onnx"

_USAGE_IMAGE = """\
import numpy as np
import onnxruntime
from PIL import Image

size, scaled, squash = {size}, {scaled}, {squash}
image = Image.open("photo.jpg").convert("RGB")
shorter = min(image.size)
resized = (scaled, scaled) if squash else tuple(int(scaled * side / shorter) for side in image.size)
image = image.resize(resized, Image.Resampling.{interpolation})
left, top = (round((side - size) / 2) for side in resized)
pixels = np.asarray(image.crop((left, top, left + size, top + size)))
session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
names = [output.name for output in session.get_outputs()]
images = pixels.transpose(2, 0, 1)[None]
outputs = dict(zip(names, session.run(names, {{"images": images}})))
"""
_USAGE_TEXT = """\
import numpy as np
import onnxruntime
from tokenizers import Tokenizer

tokenizer = Tokenizer.from_file("tokenizer.json")
tokenizer.enable_padding(pad_id={padding})
texts = tokenizer.encode_batch(["one text", "and another"])
ids = np.array([text.ids for text in texts], np.int64)
mask = np.array([text.attention_mask for text in texts], bool)
session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
names = [output.name for output in session.get_outputs()]
outputs = dict(zip(names, session.run(names, {{"ids": ids, "mask": mask}})))
"""


def export_onnx(student: Student, folder: Path, *, facts: Json, class_names: Mapping[str, Sequence[str]]) -> Exported:
    """model.onnx with a dynamic batch, and tokens, and tokenizer.json for text; see `Exporter`.

    The file's metadata has "digest", "input" and "class_names" as JSON. Raises UsageError where a package is missing.
    """
    if missing := [name for name in _PACKAGES if importlib.util.find_spec(name) is None]:
        hint = "pip install 'featurecache[onnx]'"
        raise UsageError(f"ONNX needs {' and '.join(missing)}, which is not installed", hint=hint)
    network_input = student.backbone.input
    program = _traced(student)
    inner = program.model
    _name_outputs(inner, ["features", *student.widths])
    inner.metadata_props.update(
        digest=json.dumps(facts.get("digest")),
        input=json.dumps(network_input.to_json()),
        class_names=json.dumps({head: list(names) for head, names in class_names.items()}),
    )
    program.save(folder / _FILE)
    if isinstance(network_input, TextInput):
        (folder / "tokenizer.json").write_text(network_input.tokenizer.to_str(), encoding="utf-8")
    return Exported(
        usage=_usage(network_input),
        largest_difference=_tried(student, folder / _FILE),
        notes=("outputs have the names of the heads, and `features`",),
    )


class _Positional(nn.Module):
    """The student with inputs and outputs in order, as ONNX has them."""

    def __init__(self, student: Student, inputs: Sequence[str]) -> None:
        super().__init__()
        self.student, self.inputs = student, inputs

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Inputs in the order of `inputs` -> features, then heads as the student has them."""
        outputs = self.student(dict(zip(self.inputs, tensors, strict=True)))
        return tuple(outputs[name] for name in ("features", *self.student.widths))


def _traced(student: Student) -> Any:
    """Raises FeatureCacheError for a network that torch cannot put down as a graph."""
    batch = trial_batch(student.backbone.input, 3)
    axes = {0: "batch"} if "images" in batch else {0: "batch", 1: "tokens"}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of names that several axes share, and of versions to come
            return torch.onnx.export(
                _Positional(student, list(batch)).eval(),
                tuple(batch.values()),
                dynamo=True,
                verbose=False,
                input_names=list(batch),
                dynamic_shapes=(tuple(axes for _ in batch),),
            )
    except (RuntimeError, TypeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        message = f"torch cannot put {student.backbone.name} down as ONNX: {reason}"
        raise FeatureCacheError(message, hint="the other kinds of export do not need that") from error


def _name_outputs(model: Any, names: Sequence[str]) -> None:
    """Give the outputs their heads' names, and leave out where on this machine the code of each node was."""
    taken = {*names, *(value.name for value in model.graph.inputs)}
    for value in _values(model):
        value.metadata_props.clear()
        if value.name in taken and value not in model.graph.inputs:
            value.name = f"inner.{value.name}"
    for value, name in zip(model.graph.outputs, names, strict=True):
        value.name = name


def _values(model: Any) -> Iterator[Any]:
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        yield from node.outputs


def _tried(student: Student, file: Path) -> float:
    """The largest difference over a batch of one and one of the longest samples. Raises FeatureCacheError."""
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        differences = []
        for samples, tokens in ((1, 5), (4, 512)):
            batch = trial_batch(student.backbone.input, samples, tokens=tokens)
            arrays = session.run(names, {name: value.numpy() for name, value in batch.items()})
            found = {name: torch.from_numpy(array) for name, array in zip(names, arrays, strict=True)}
            differences.append(check_agreement(found, outputs_of(student, batch), tolerance=_TOLERANCE))
    except FeatureCacheError:
        raise
    except Exception as error:  # onnxruntime's own exceptions share no other ancestor
        raise FeatureCacheError(f"onnxruntime cannot run what was exported: {error}") from error
    return max(differences)


def _usage(network_input: ImageInput | TextInput) -> str:
    if isinstance(network_input, TextInput):
        return _USAGE_TEXT.format(padding=network_input.padding_id)
    return _USAGE_IMAGE.format(
        size=network_input.size,
        scaled=int(network_input.size / network_input.crop_pct),
        squash=network_input.crop_mode == "squash",
        interpolation=network_input.interpolation.upper(),
    )
