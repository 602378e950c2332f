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
from featurecache.rows import rows_identity
from featurecache.sources.base import Source
from featurecache.store.layout import FORMAT, REASON, RESERVED_NAMES, VALID, EncodedOutput, PartSpec
from featurecache.teachers.base import Teacher
from featurecache.types import ArraySpec, Json

__all__ = ["SHARED_ARRAYS", "more_views", "plan_part"]

SHARED_ARRAYS = (VALID, REASON, ArraySpec("input_hash", "uint64"))
"""What every teacher's part has besides its outputs."""


def plan_part(
    teacher: Teacher,
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
    encodings = _encodings(teacher, outputs, encode or {}, temperatures)
    chosen = {output.name: output for output in teacher.outputs if output.name in encodings}
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
        arrays=(*(array for encoding in encodings.values() for array in encoding.arrays), *SHARED_ARRAYS),
        outputs=tuple(EncodedOutput(chosen[name], encoding.spec) for name, encoding in encodings.items()),
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


def _encodings(
    teacher: Teacher, outputs: Sequence[str] | None, encode: Mapping[str, str], temperatures: Sequence[float]
) -> dict[str, Encoding]:
    known = {output.name: output for output in teacher.outputs}
    for name in [*(outputs or ()), *encode]:
        if name not in known:
            raise UnknownNameError(f"output of {teacher.name}", name, known)
    chosen = list(dict.fromkeys(outputs or known))
    if unused := set(encode) - set(chosen):
        raise UsageError(f"--encode names {', '.join(sorted(unused))}, which --outputs leaves out")
    for name, spec in encode.items():
        if is_sparse(spec) and name != "logits":
            hint = f"write --encode {name}=float16 or {name}=float32"
            raise UsageError(f"{spec} keeps some classes of logits; every number of {name} counts", hint=hint)
    if not all(0 < temperature < math.inf for temperature in temperatures):
        raise UsageError("temperatures must be positive numbers", hint="for example --temperatures 1,2,4")
    return {name: make_encoding(encode.get(name, "float16"), known[name], temperatures=temperatures) for name in chosen}


def _part_name(teacher: str) -> str:
    """A teacher's name as the name of a part."""
    name = re.sub(r"[^a-z0-9_.-]+", "-", teacher.lower())
    name = re.sub(r"\.{2,}", ".", name)[:56].strip(".-_")
    taken = {"rows", "inputs", "views", "probe", *RESERVED_NAMES}
    return name if re.match(r"[a-z]", name) and name not in taken else f"teacher-{name}"


def _origin(teacher: Teacher) -> Json:
    """The hub's commit and the licence of the weights, where a teacher knows them."""
    known = {name: value for name in ("revision", "license") if (value := getattr(teacher, name, None))}
    return {"teacher": known} if known else {}


def _provenance() -> Json:
    import importlib.metadata

    packages = ("featurecache", "torch", "timm", "transformers", "pillow", "numpy")
    versions = {name: importlib.metadata.version(name) for name in packages}
    return {"created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "packages": versions}
