"""What a student starts from: a run, a trained student, a transformers folder or name, weights of timm."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import transformers
from safetensors import SafetensorError
from torch import Tensor

from featurecache.errors import CorruptCacheError, UsageError
from featurecache.types import Json
from student.models.base import Backbone
from student.models.bert import quiet
from student.models.build import PUBLISHED_BERTS
from student.models.student import Student
from student.tokenizer import read_tokenizer

__all__ = ["start_from", "start_place", "start_tokenizer"]

_PUBLISHED = "published"
_BERT = re.compile(r"bert:(\d+)x(\d+)")
_OFFLINE = "without a network, give a local folder"


def start_place(given: str, student: str | None) -> str:
    """What was given as --init-from, made exact: RUN/student for a finished run, and for "published" the hub's name of
    the pre-trained BERT of that size (Turc et al., arXiv 1908.08962). Raises UsageError."""
    if given == _PUBLISHED:
        return _published(student)
    if not (Path(given) / "recipe.json").is_file():
        return given
    if not (Path(given) / "summary.json").is_file():
        raise UsageError(f"the run {given} is not finished", hint="finish it with --resume")
    return str(Path(given) / "student")


def start_tokenizer(place: str) -> str | None:
    """The text of the `tokenizer.json` that belongs to what is at a place; None where there is none. Raises UsageError
    for a tokenizer that cannot be read."""
    folder = Path(place)
    if folder.name == "tokenizer.json" or (folder / "tokenizer.json").is_file():
        return read_tokenizer(folder)
    is_name = not folder.exists() and place.count("/") <= 1 and not place.endswith(".safetensors")
    if not is_name and not (folder / "vocab.txt").is_file():
        return None
    try:
        with quiet():
            tokenizer: Any = transformers.AutoTokenizer.from_pretrained(place, trust_remote_code=False)
        text: str = tokenizer.backend_tokenizer.to_str()
        return text
    except Exception as error:  # as many classes as there are tokenizers
        raise UsageError(f"cannot load the tokenizer of {place!r}: {error}", hint=_OFFLINE) from error


def start_from(student: Student, place: str, class_names: Sequence[str] = ()) -> None:
    """Give a student the weights at a place: of its backbone, and of the heads of a trained student.

    Those are taken where it was trained on data of the same classes; a classifier of labels then also starts from what
    learned the teacher's logits. Raises UsageError for weights of another shape.
    """
    if not (Path(place) / "student.json").is_file():
        student.backbone.load_pretrained(place)
        return
    facts, weights = _trained(Path(place))
    _check_same(student.backbone, facts, place)
    own = student.state_dict()
    found = {name: value for name, value in weights.items() if name.startswith("backbone.")}
    if class_names and facts.get("class_names") == list(class_names):
        found |= _heads(student, facts, weights)
    fitting = {name: value for name, value in found.items() if name in own and own[name].shape == value.shape}
    if lacking := [name for name in own if name.startswith("backbone.") and name not in fitting]:
        raise UsageError(f"{place} lacks weights of the student, such as {lacking[0]}")
    student.load_state_dict({**own, **fitting})


def _published(student: str | None) -> str:
    size = _BERT.fullmatch(student or "")
    if size is None:
        message = f"no model was published for the student {student or 'that is not named'}"
        raise UsageError(message, hint="--init-from published is for --student bert:LAYERSxWIDTH")
    layers, width = int(size[1]), int(size[2])
    if (layers, width) not in PUBLISHED_BERTS:
        hint = "there are 2, 4, 6, 8, 10 or 12 layers of 128, 256, 512 or 768"
        raise UsageError(f"bert:{layers}x{width} is none of the 24 sizes that were published", hint=hint)
    return f"google/bert_uncased_L-{layers}_H-{width}_A-{width // 64}"


def _trained(folder: Path) -> tuple[Json, dict[str, Tensor]]:
    try:
        facts: Json = json.loads((folder / "student.json").read_text(encoding="utf-8"))
        if not isinstance(facts, dict):
            raise TypeError("student.json is no JSON object")
        return facts, safetensors.torch.load_file(folder / "student.safetensors")
    except (OSError, TypeError, ValueError, SafetensorError) as error:
        raise CorruptCacheError(f"{folder} does not hold a whole student: {error}") from error


def _check_same(backbone: Backbone, facts: Json, place: str) -> None:
    own, there = backbone.to_json(), facts.get("backbone")
    if own != there:
        message = f"the student {backbone.name} cannot start from {place}, which has {there}, not {own}"
        raise UsageError(message, hint="choose the same --student, and the tokenizer that belongs to it")


def _heads(student: Student, facts: Json, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    found = {name: value for name, value in weights.items() if name.startswith("heads.")}
    classes = facts.get("classes")
    if "labels" in student.heads and "labels" not in facts.get("heads", {}) and classes is not None:
        index = torch.tensor(classes)
        for what in ("weight", "bias"):
            if (value := weights.get(f"heads.logits.{what}")) is not None:
                found[f"heads.labels.{what}"] = value[index]
    return found
