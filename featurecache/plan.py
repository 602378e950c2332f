"""What a teacher's part over a source will be: its identity, its outputs and their encodings, its arrays."""

import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from featurecache.augment import Augmentation
from featurecache.draw import views_identity
from featurecache.encodings import Encoding, is_sparse, make_encoding
from featurecache.errors import UnknownNameError, UsageError
from featurecache.fingerprint import hash_json
from featurecache.forward import PRECISIONS
from featurecache.layers import deepest_layer
from featurecache.rows import rows_identity
from featurecache.sources.base import Source
from featurecache.store.layout import FORMAT, OFFSETS, REASON, RESERVED_NAMES, VALID, EncodedOutput, PartSpec
from featurecache.teachers.base import Described, further_outputs
from featurecache.types import ArraySpec, Json, OutputSpec

__all__ = ["SHARED_ARRAYS", "more_views", "output_names", "plan_part"]

SHARED_ARRAYS = (VALID, REASON, ArraySpec("input_hash", "uint64"))
"""What every teacher's part has besides its outputs."""


def plan_part(
    teacher: Described,
    source: Source,
    split: str,
    *,
    outputs: Sequence[str] | None = None,
    encode: Mapping[str, str] | None = None,
    temperatures: Sequence[float] = (1.0, 2.0, 4.0),
    precision: str = "float32",
    augmentation: Augmentation | None = None,
    seed: int = 0,
    views: tuple[int, int] = (0, 1),
) -> PartSpec:
    """The part that this teacher's outputs over this source, in views [first, stop), will be.

    View 0 is the plain one; the others are those that the augmentation draws with the seed. Raises UsageError for what
    does not fit.
    """
    if teacher.input.modality != source.modality:
        raise UsageError(f"{teacher.name} takes {teacher.input.modality}s, and the data are {source.modality}s")
    if precision not in PRECISIONS:
        raise UnknownNameError("precision", precision, PRECISIONS)
    known = _known(teacher, [*(outputs or ()), *(encode or {})])
    chosen = _chosen(teacher, known, outputs, encode or {}, temperatures)
    encodings = {output.name: encoding for output, encoding in chosen}
    offsets = [OFFSETS] if any(output.longest for output, _ in chosen) else []
    what = {"teacher": teacher.identity(), "input": teacher.input.to_json(), "precision": precision}
    return PartSpec(
        name=_part_name(teacher.name),
        kind="teacher",
        split=split,
        rows=len(source),
        views=views,
        identity={
            "format": FORMAT,
            "kind": "teacher",
            "data": rows_identity(source),
            **what,
            "encodings": {name: encoding.spec for name, encoding in encodings.items()},
            "views": views_identity(augmentation if views[1] > 1 else None, seed=seed, views=views),
        },
        arrays=(*(array for _, encoding in chosen for array in encoding.arrays), *offsets, *SHARED_ARRAYS),
        outputs=tuple(EncodedOutput(output, encoding.spec) for output, encoding in chosen),
        facts={
            "teacher": teacher.name,
            "teacher_id": hash_json(what),
            "input": teacher.input.to_json(),
            "proof": teacher.input.proof(),
        },
        provenance=_provenance() | _origin(teacher),
    )


def more_views(part: PartSpec, augmentation: Augmentation, *, seed: int, views: tuple[int, int]) -> PartSpec:
    """What a teacher's part will be in further views [first, stop): the same outputs, kept in the same way."""
    drawn = views_identity(augmentation, seed=seed, views=views)
    return replace(
        part,
        name=f"{part.name[:54]}.v{views[0]}",
        views=views,
        identity={**part.identity, "views": drawn},
        assets={},
        provenance=_provenance() | {name: part.provenance[name] for name in ("teacher",) if name in part.provenance},
    )


def output_names(teacher: Described, names: Sequence[str]) -> list[str]:
    """The names of outputs, each once; "hidden.last" and "qkv.last" are those of the teacher's last layer.

    Raises UnknownNameError for what it does not give.
    """
    known = _known(teacher, names)
    found = []
    for name in names:
        kind, dot, layer = name.rpartition(".")
        if dot and layer == "last" and (deepest := deepest_layer(kind, known)):
            name = deepest
        if name not in known:
            raise UnknownNameError(f"output of {teacher.name}", name, known)
        found.append(name)
    return list(dict.fromkeys(found))


def _known(teacher: Described, names: Sequence[str]) -> dict[str, OutputSpec]:
    """What a teacher can give; further outputs only if the names have others than it always gives, for it may have to
    be run to know them."""
    always = {output.name: output for output in teacher.outputs}
    return (
        always
        if all(name in always for name in names)
        else {**always, **{out.name: out for out in further_outputs(teacher)}}
    )


def _chosen(
    teacher: Described,
    known: Mapping[str, OutputSpec],
    outputs: Sequence[str] | None,
    encode: Mapping[str, str],
    temperatures: Sequence[float],
) -> list[tuple[OutputSpec, Encoding]]:
    """Each output that is asked for, or that the teacher always gives, and how it is kept."""
    asked = {name: spec for given, spec in encode.items() for name in output_names(teacher, [given])}
    chosen = output_names(teacher, outputs or [output.name for output in teacher.outputs])
    if unused := set(asked) - set(chosen):
        raise UsageError(f"--encode names {', '.join(sorted(unused))}, which --outputs leaves out")
    for name, spec in asked.items():
        if is_sparse(spec) and name != "logits":
            hint = f"write --encode {name}=float16 or {name}=float32"
            raise UsageError(f"{spec} keeps some classes of logits; every number of {name} counts", hint=hint)
    if not all(0 < temperature < math.inf for temperature in temperatures):
        raise UsageError("temperatures must be positive numbers", hint="for example --temperatures 1,2,4")
    return [
        (known[name], make_encoding(asked.get(name, "float16"), known[name], temperatures=temperatures))
        for name in chosen
    ]


def _part_name(teacher: str) -> str:
    """A teacher's name as the name of a part."""
    name = re.sub(r"[^a-z0-9_.-]+", "-", teacher.lower())
    name = re.sub(r"\.{2,}", ".", name)[:56].strip(".-_")
    taken = {"rows", "inputs", "views", "probe", *RESERVED_NAMES}
    return name if re.match(r"[a-z]", name) and name not in taken else f"teacher-{name}"


def _origin(teacher: Described) -> Json:
    """The hub's commit and the licence of the weights, where a teacher knows them."""
    known = {name: value for name in ("revision", "license") if (value := getattr(teacher, name, None))}
    return {"teacher": known} if known else {}


def _provenance() -> Json:
    import importlib.metadata

    packages = ("featurecache", "torch", "timm", "transformers", "pillow", "numpy")
    versions = {name: importlib.metadata.version(name) for name in packages}
    return {"created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "packages": versions}
