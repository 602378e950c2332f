"""`fc probe`: a linear head on cached embeddings, added to the cache so that logits cost no further teacher pass."""

import time
from pathlib import Path
from typing import TYPE_CHECKING

from featurecache.errors import UsageError
from featurecache.types import NO_LABEL, ArraySpec, Json, OutputSpec, SparseLogits
from pipelines.events import Message, Run

if TYPE_CHECKING:
    import numpy as np

    from featurecache.store.reader import Cache, CacheReader
    from student.linear_probe import LinearProbe

__all__ = ["fit_probe"]


def fit_probe(
    *,
    cache: Path | str = "./cache",
    split: str = "train",
    labels: int | None = None,
    output: str = "embedding",
    validation: float = 0.1,
    seed: int = 0,
) -> Run[Json]:
    """Fit on one split's labels (at most `labels` of them, chosen by key) and seal the head into the cache.

    Every split with the same teacher then has `logits`. Returns part, classes, labels, steps, validation accuracy and
    digest. Raises UsageError if the split has no labels or no such output.
    """
    import numpy as np

    from featurecache.store.seals import seal
    from pipelines.load import open_sealed
    from student.linear_probe import fit_linear_probe
    from student.selection import labelled_rows, validation_rows

    opened, _ = open_sealed(str(cache))
    reader = opened.split(split)
    known = np.where(reader.valid([output]), reader.labels, NO_LABEL)
    if not (known != NO_LABEL).any():
        raise UsageError(f"split {split!r} has no labels to fit a probe on", hint="extract data that has labels")
    chosen = labelled_rows(reader.keys, known, labels)
    rows = np.flatnonzero(chosen)
    held_out = validation_rows([reader.keys[row] for row in rows], validation)
    yield Message(f"fit on {(~held_out).sum():,} labels of {split}, {held_out.sum():,} to stop by")
    features = reader.read(rows, outputs=[output])[output]
    if isinstance(features, SparseLogits):
        raise UsageError(f"a probe needs dense features; {output} is kept as sparse logits", hint="--output embedding")
    probe = fit_linear_probe(features, known[rows], held_out, classes=len(reader.class_names), seed=seed)
    part = _add_part(opened, reader, probe, chosen, output=output, seed=seed, validation=validation)
    sealed = seal(opened.objects)
    return {
        "part": part,
        "classes": len(reader.class_names),
        "labels": int(rows.size),
        "steps": probe.steps,
        "validation_accuracy": round(probe.validation_accuracy, 4),
        "digest": sealed.digest,
    }


def _add_part(
    cache: "Cache",
    reader: "CacheReader",
    probe: "LinearProbe",
    labelled: "np.ndarray",
    *,
    output: str,
    seed: int,
    validation: float,
) -> str:
    """Write the head and which rows' labels it saw; returns the part's place."""
    import safetensors.torch

    from featurecache.fingerprint import hash_tensors
    from featurecache.store.layout import EncodedOutput, PartSpec
    from featurecache.store.writer import CacheWriter

    tensors = {"weight": probe.weight.contiguous(), "bias": probe.bias.contiguous()}
    teacher = reader.teacher_part(output)
    identity = {
        "kind": "probe",
        "teacher_id": teacher.facts["teacher_id"],
        "input": output,
        "fingerprint": reader.fingerprint,
        "weights_sha256": hash_tensors(tensors),
    }
    probes = [part for part in cache.all_parts() if part.kind == "probe"]
    rivals = [part for part in probes if part.facts["teacher_id"] == teacher.facts["teacher_id"]]
    newest = max(rivals, key=lambda part: int(part.facts.get("order", 0)), default=None)
    # an older one that is the same would leave the logits to the newest, which may have seen more labels
    is_same = newest is not None and newest.split == reader.split and newest.identity == identity
    standing = newest if is_same else None
    taken = cache.objects.list(reader.split)
    free = next(name for name in ["probe", *(f"probe-{n}" for n in range(2, 10_000))] if name not in taken)
    part = standing or PartSpec(
        name=free,
        kind="probe",
        split=reader.split,
        rows=len(reader),
        identity=identity,
        arrays=(ArraySpec("labelled", "uint8"),),
        outputs=(EncodedOutput(OutputSpec("logits", (len(reader.class_names),), reader.class_names), "head"),),
        facts={"teacher_id": teacher.facts["teacher_id"], "input": output, "order": len(probes)},
        provenance={
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "labels": int(labelled.sum()),
            "validation": validation,
            "validation_accuracy": probe.validation_accuracy,
            "steps": probe.steps,
            "seed": seed,
        },
    )
    writer = CacheWriter(cache.objects, part, assets={"head.safetensors": safetensors.torch.save(tensors)})
    seen = labelled.astype("uint8")
    for shard in writer.pending():
        writer.write(shard, {"labelled": seen[shard.start : shard.stop]})
    return part.prefix
