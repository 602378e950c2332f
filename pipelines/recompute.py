"""Running a cache's teacher again on some rows, to compare what it says with what is stored."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featurecache.errors import CorruptCacheError, IdentityError, TeacherError, differences
from featurecache.types import Json, Modality, SparseLogits
from pipelines.events import Advance, Message, Run, default_device
from pipelines.load import has_outputs, open_samples, open_split

if TYPE_CHECKING:
    import torch

    from featurecache.loader import Loaded
    from featurecache.sources import Source
    from featurecache.store.layout import PartSpec
    from featurecache.store.reader import CacheReader
    from featurecache.teachers.base import Teacher

__all__ = ["recompute_splits"]

_LEAST_COSINE = 0.999
_LEAST_AGREEMENT = 0.99
_BATCH = 64


def recompute_splits(
    cache: Path | str,
    *,
    rows: int,
    teacher: str | None = None,
    weights: str | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    data: Sequence[str] | None = None,
    device: str | None = None,
) -> Run[Json]:
    """By split and output: how many rows, the numbers of `measure.loss`, the agreement of logits, and whether it is ok.

    The rows are spread evenly over the valid ones. Raises IdentityError if teacher or samples are not those that the
    cache was made from, TeacherError if the teacher cannot be loaded from what the cache says of it.
    """
    from featurecache.store.reader import open_cache

    opened = open_cache(cache)
    found: dict[str, Json] = {}
    for split in opened.splits:
        if not has_outputs(opened, split):
            yield Message(f"{split} has no outputs to recompute")
            continue
        reader = open_split(opened, split)
        source = open_samples(opened, split, data)
        if source.fingerprint() != reader.fingerprint:
            raise IdentityError(f"the samples of {split} are not those the cache lists", hint="check --data")
        found[split] = {}
        for part in [part.part for part in reader.teachers.values()]:
            network = _load(part, teacher, weights, model_kwargs)
            found[split] |= yield from _recompute(reader, source, part, network, rows, device or default_device())
    return found


def _load(
    part: "PartSpec", teacher: str | None, weights: str | None, model_kwargs: Mapping[str, Any] | None
) -> "Teacher":
    """The teacher behind a part. Raises IdentityError if it is another one, TeacherError."""
    from featurecache.teachers import load_teacher

    try:
        spec, options = _described(part)
    except (KeyError, TypeError, AttributeError) as error:
        raise CorruptCacheError(f"{part.prefix}/part.json does not say what its teacher is: {error!r}") from None
    if model_kwargs:
        options["model_kwargs"] = model_kwargs
    name = teacher or spec
    if name is None:
        hint = "name it with --teacher, and --model-kwargs if it had some, as for `fc extract`"
        raise TeacherError(f"{part.prefix} does not say where its teacher is to be found", hint=hint)
    modality: Modality = "text" if part.facts["input"]["kind"] == "text" else "image"
    try:
        network = load_teacher(name, modality=modality, weights=weights, **options)
    except TeacherError:
        if teacher is None:
            raise
        network = load_teacher(name, modality=modality, weights=weights)  # another kind takes no such options
    there = {"teacher": part.identity["teacher"], "input": part.identity["input"]}
    here = {"teacher": network.identity(), "input": network.input.to_json()}
    if fields := differences(there, here):
        hint = "name the teacher it was made with by --teacher, --weights and --model-kwargs"
        raise IdentityError(f"{part.prefix} was made by another teacher:", fields=fields, hint=hint)
    return network


def _described(part: "PartSpec") -> tuple[str | None, dict[str, Any]]:
    """The name of a teacher as a part's identity gives it, and options that only concern its input.

    A cache may come from anybody, so no name in it leads to code: of a module of one's own, and of a model with
    arguments, there is no name here, and the user has to give it.
    """
    identity, seen = part.identity["teacher"], part.facts["input"]
    library = identity["library"]
    geometry = {"img_size": seen["size"], "crop_pct": seen["crop_pct"]} if seen["kind"] == "image" else {}
    if library == "random":
        shapes = {item.output.name: item.output.shape for item in part.outputs}
        sizes = {"dim": shapes.get("embedding", (64,))[0], "classes": shapes.get("logits", (0,))[0]}
        return "random", {"model_kwargs": sizes}
    if library == "timm":
        return None if identity["config"]["model_kwargs"] else f"timm:{part.facts['teacher']}", geometry
    if library == "torch":
        return None, geometry
    length = {} if geometry else {"max_length": seen["max_length"]}
    is_minilm = part.facts["teacher"] == "all-MiniLM-L6-v2"
    return "minilm" if is_minilm else None, {**geometry, **length, "pool": identity["outputs"]["embedding"]["pool"]}


def _recompute(
    reader: "CacheReader", source: "Source", part: "PartSpec", network: "Teacher", count: int, device: str
) -> Run[Json]:
    import torch

    from featurecache.forward import Forward
    from featurecache.loader import load

    names = [name for name in reader.outputs if reader.output_part(name).prefix == part.prefix]
    valid = np.flatnonzero(reader.valid(names))
    count = min(count, len(valid))
    rows = valid[np.arange(count) * len(valid) // max(count, 1)]
    exact = {name: torch.empty(count, *reader.outputs[name].shape) for name in names}
    starts = range(0, count, _BATCH)
    forward = Forward(network, batch_size=_BATCH, device=device, precision=part.identity["precision"])
    for start, batch in zip(
        starts, load(source, network.input, [rows[at : at + _BATCH] for at in starts]), strict=True
    ):
        _check_unchanged(batch, reader, source)
        for chosen, outputs in forward.outputs(batch.inputs):
            for name in names:
                exact[name][start + chosen] = outputs[name.rpartition("/")[2]].float().cpu()
        yield Advance(f"recompute {reader.split}", start + len(batch.rows), count)
    stored = reader.read(rows, outputs=names)
    return {name: _judged(name, exact[name], stored[name]) for name in names if count}


def _check_unchanged(batch: "Loaded", reader: "CacheReader", source: "Source") -> None:
    changed = np.flatnonzero((batch.content_hashes != reader.content_hashes[batch.rows]) | (batch.reasons > 0))
    if changed.size:
        key = source.keys[int(batch.rows[changed[0]])]
        raise IdentityError(f"sample {key!r} is not what it was when the cache was made", hint="check --data")


def _judged(name: str, exact: "torch.Tensor", stored: "torch.Tensor | SparseLogits") -> Json:
    from featurecache.measure import loss

    are_logits = name.rpartition("/")[2] == "logits"
    facts = loss(exact, stored, are_logits=are_logits)
    if isinstance(stored, SparseLogits):
        facts["agreement"] = float((exact.argmax(-1) == stored.indices[:, 0]).double().mean())
    enough = facts.get("agreement", 1.0) >= _LEAST_AGREEMENT and facts.get("cosine", 1.0) >= _LEAST_COSINE
    return {**facts, "ok": enough}
