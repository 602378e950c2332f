"""Running a cache's teacher again on some rows, to compare what it says with what is stored."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featurecache.errors import CorruptCacheError, IdentityError, TeacherError, differences
from featurecache.store.validate import check_count, check_text
from featurecache.types import Json, Modality, OutputSpec, SparseLogits, TopLogits
from pipelines.events import Advance, Run, default_device
from pipelines.load import has_outputs, open_samples, open_split

if TYPE_CHECKING:
    import torch

    from featurecache.loader import Loaded
    from featurecache.sources import Source
    from featurecache.store.layout import PartSpec
    from featurecache.store.reader import CacheReader
    from featurecache.teachers.base import Teacher

__all__ = ["Recomputation", "load_again", "prepare", "recompute"]

_LEAST_COSINE = 0.999
_LEAST_AGREEMENT = 0.99
_MOST_ENTROPY_ERROR = 0.01
"""Nats; the one thing that is kept of sampled logits and is not random."""
_BATCH = 64
_TIMM_NAME = re.compile(r"[a-z0-9_]+(\.[a-z0-9_]+)?")
_MOST_PIXELS = 2**12
"""Largest side of an image that a cache can ask for, before its teacher is known to be the one it names."""
_LEAST_CROP = 0.125
_MOST_TOKENS = 2**17
_MOST_NUMBERS = 2**16
"""Largest output of the random teacher that a cache can ask for."""


@dataclass(frozen=True, slots=True)
class Recomputation:
    """A teacher's part, its samples and the teacher itself, all known to belong together."""

    reader: "CacheReader"
    source: "Source"
    part: "PartSpec"
    network: "Teacher"


def prepare(
    cache: Path | str,
    *,
    teacher: str | None = None,
    weights: str | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    data: Sequence[str] | None = None,
) -> list[Recomputation]:
    """Every part that a teacher gave, with samples and teacher opened; with `teacher`, those of that one alone.

    Raises IdentityError if teacher or samples are not those that the cache was made from, TeacherError if the teacher
    cannot be loaded from what the cache says of it, SourceError.
    """
    from featurecache.store.reader import open_cache

    opened = open_cache(cache)
    found = []
    networks: dict[str, Teacher | IdentityError] = {}
    for split in opened.splits:
        if not has_outputs(opened, split):
            continue
        reader = open_split(opened, split)
        source = open_samples(opened, split, data, as_extracted=True)
        if source.fingerprint() != reader.fingerprint:
            raise IdentityError(f"the samples of {split} are not those the cache lists", hint="check --data")
        for part in [part.part for part in reader.teachers.values()]:
            made_by = part.facts["teacher_id"]
            if made_by not in networks:
                networks[made_by] = _loaded_or_other(part, teacher, weights, model_kwargs)
            network = networks[made_by]
            if not isinstance(network, IdentityError):
                found.append(Recomputation(reader, source, part, network))
    others = [network for network in networks.values() if isinstance(network, IdentityError)]
    if others and not found:
        raise others[0]
    return found


def recompute(prepared: Sequence[Recomputation], rows: int, *, device: str | None = None) -> Run[Json]:
    """By split and output: how many rows, the numbers of `measure.loss`, the agreement of logits, and whether it is ok.

    The rows are spread evenly over the valid ones.
    """
    found: dict[str, Json] = {}
    for one in prepared:
        outputs = yield from _recompute(one, rows, device or default_device())
        judged = found.setdefault(one.reader.split, {})
        judged |= {
            name if name not in judged else f"{name} of {one.part.name}": facts for name, facts in outputs.items()
        }
    return found


def _loaded_or_other(
    part: "PartSpec", teacher: str | None, weights: str | None, model_kwargs: Mapping[str, Any] | None
) -> "Teacher | IdentityError":
    """The teacher of a part, or why the one that was named is not it: another part may be its own."""
    try:
        return load_again(part, teacher, weights, model_kwargs)
    except IdentityError as error:
        if teacher is None:
            raise
        return error


def load_again(
    part: "PartSpec", teacher: str | None, weights: str | None, model_kwargs: Mapping[str, Any] | None
) -> "Teacher":
    """The teacher behind a part. Raises IdentityError if it is another one, TeacherError."""
    from featurecache.teachers import load_teacher
    from featurecache.teachers.base import further_outputs

    try:
        spec, described = _described(part)
        there = {"teacher": part.identity["teacher"], "input": part.identity["input"]}
        check_text(part.identity["precision"])
    except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
        raise CorruptCacheError(f"{part.prefix}/part.json does not say what its teacher is: {error!r}") from None
    given: dict[str, Any] = {"model_kwargs": model_kwargs} if model_kwargs else {}
    name = teacher or spec
    if name is None:
        raise _not_found(part)
    modality: Modality = "text" if part.facts["input"]["kind"] == "text" else "image"
    try:
        network = load_teacher(name, modality=modality, weights=weights, **{**described, **given})
    except TeacherError as error:
        if teacher is None:
            message = f"the teacher of {part.prefix}, {name}, is not found by its name: {error.message}"
            hint = "name it with --teacher, as for `fc extract`: its folder, or the name together with --weights"
            raise TeacherError(message, hint=hint) from None
        if not described:
            raise
        network = load_teacher(name, modality=modality, weights=weights, **given)  # another kind has no such options
    here = {"teacher": network.identity(), "input": network.input.to_json()}
    if fields := differences(there, here):
        hint = "name the teacher it was made with by --teacher (its folder, if it is one), --weights and --model-kwargs"
        raise IdentityError(f"{part.prefix} was made by another teacher:", fields=fields, hint=hint)
    always = {output.name for output in network.outputs}
    is_asked = any(item.output.name not in always for item in part.outputs)
    gives = {_form(output) for output in (*network.outputs, *(further_outputs(network) if is_asked else ()))}
    for item in part.outputs:
        if _form(item.output) not in gives:
            raise CorruptCacheError(f"{part.prefix} has an output {item.output.name} that its teacher does not give")
    return network


def _form(output: OutputSpec) -> tuple[str, tuple[int, ...], int, int]:
    return output.name, output.shape, output.longest, output.heads


def _not_found(part: "PartSpec") -> TeacherError:
    from featurecache.teachers.recorded import LIBRARY

    if part.identity["teacher"]["library"] == LIBRARY:
        hint = (
            "verify without --recompute; a further split is imported from the same file, another --teacher can be added"
        )
        return TeacherError(f"{part.prefix} was imported: its teacher is not known, and cannot be run again", hint=hint)
    hint = "name it with --teacher, and --model-kwargs if it had some, as for `fc extract`"
    return TeacherError(f"{part.prefix} does not say where its teacher is to be found", hint=hint)


def _described(part: "PartSpec") -> tuple[str | None, dict[str, Any]]:
    """The name of a teacher as a part's identity gives it, and options that only concern its input.

    A cache may come from anybody, so no name in it leads to code: of a module of one's own, and of a model with
    arguments, there is no name here, and the user has to give it. Of what was imported there is no teacher at all.
    """
    from featurecache.teachers.recorded import LIBRARY

    identity, seen = part.identity["teacher"], part.facts["input"]
    library = identity["library"]
    if library == LIBRARY:
        return None, {}
    geometry = _geometry(seen) if seen["kind"] == "image" else {}
    if library == "random":
        shapes = {item.output.name: item.output.shape for item in part.outputs}
        dim = shapes.get("embedding", shapes.get("hidden.0", (64,)))[-1]
        sizes = {"dim": dim, "classes": shapes.get("logits", (0,))[0]}
        sizes = {name: check_count(size, below=_MOST_NUMBERS + 1) for name, size in sizes.items()}
        return "random", {"model_kwargs": sizes}
    if library == "timm":
        return None if identity["config"]["model_kwargs"] else _timm_name(part.facts["teacher"]), geometry
    if library == "torch":
        return None, geometry
    length = {} if geometry else {"max_length": check_count(seen["max_length"], below=_MOST_TOKENS + 1)}
    pool = check_text(identity["outputs"]["embedding"]["pool"])
    is_minilm = part.facts["teacher"] == "all-MiniLM-L6-v2"
    return "minilm" if is_minilm else None, {**geometry, **length, "pool": pool}


def _timm_name(name: str) -> str | None:
    """A model of timm's own list; a folder, which timm's names may be too, is only opened where the user names it."""
    return f"timm:{name}" if _TIMM_NAME.fullmatch(name) and not Path(name).is_dir() else None


def _geometry(seen: Mapping[str, Json]) -> dict[str, Any]:
    """Raises KeyError, TypeError or ValueError for what no image input has."""
    crop = seen["crop_pct"]
    if not isinstance(crop, int | float) or not _LEAST_CROP <= crop <= 1:
        raise ValueError(f"{str(crop)[:40]!r} is no part of an image")
    return {"img_size": check_count(seen["size"], below=_MOST_PIXELS + 1), "crop_pct": crop}


def _recompute(one: Recomputation, count: int, device: str) -> Run[Json]:
    import torch

    from featurecache.forward import forward_of
    from featurecache.frames import Frames
    from featurecache.loader import load

    reader, source, part, network = one.reader, one.source, one.part, one.network
    names = [name for name in reader.outputs if part in reader.parts_of(name)]
    first, stop = part.views or (0, 1)
    is_valid = np.ones(len(reader), bool)
    for view in range(first, stop):
        is_valid &= reader.valid(names, view=view)
    valid = np.flatnonzero(is_valid)
    count = min(count, len(valid))
    rows = valid[np.arange(count) * len(valid) // max(count, 1)]
    views = first + np.arange(count) % (stop - first)
    stored = reader.stored_views if stop > 1 else None
    if stored is not None:
        stored.check_fits(network.input)
    # a row has as many vectors as tokens, or one
    exact: dict[str, list[torch.Tensor]] = {name: [torch.empty(0)] * count for name in names}
    starts = range(0, count, _BATCH)
    forward = forward_of(network, part, batch_size=_BATCH, device=device)
    each = [slice(start, start + _BATCH) for start in starts]
    batches = [stored.frames(rows[at], views[at, None]) if stored else Frames.plain(rows[at]) for at in each]
    for start, batch in zip(starts, load(source, network.input, batches), strict=True):
        _check_unchanged(batch, reader, source)
        for given in forward.passes(batch, stored.augmentation if stored else None):
            for name in names:
                values = given.outputs[name.rpartition("/")[2]].float().cpu()
                for at, value, length in zip(given.frames, values, given.lengths, strict=True):
                    exact[name][start + at] = value[:length] if reader.outputs[name].longest else value[None]
        yield Advance(f"recompute {reader.split}", start + len(batch.frames), count)
    found = reader.read(rows, view=views, outputs=names)
    told = {name: reader.lengths(name, rows, view=views) for name in names if reader.outputs[name].longest}
    return {name: _judged(name, exact[name], found[name], told.get(name)) for name in names if count}


def _check_unchanged(batch: "Loaded", reader: "CacheReader", source: "Source") -> None:
    is_bad = (batch.reasons > 0) & (
        np.arange(len(batch.rows)) < len(batch.frames)
    )  # behind them stand partners of a mix
    changed = np.flatnonzero((batch.content_hashes != reader.content_hashes[batch.rows]) | is_bad)
    if changed.size:
        key = source.keys[int(batch.rows[changed[0]])]
        raise IdentityError(f"sample {key!r} is not what it was when the cache was made", hint="check --data")


def _judged(
    name: str,
    rows: "Sequence[torch.Tensor]",
    stored: "torch.Tensor | SparseLogits",
    lengths: np.ndarray | None,
) -> Json:
    """`rows` has (vectors, *shape) for each row; `lengths` is int64 (rows,), how many are stored where that differs."""
    import torch

    from featurecache.measure import loss

    are_logits = name.rpartition("/")[2] == "logits"
    exact = torch.cat(list(rows))
    if lengths is not None and not isinstance(stored, SparseLogits):
        if lengths.tolist() != list(map(len, rows)):
            return {"rows": len(rows), "ok": False}
        stored = torch.cat([row[:length] for row, length in zip(stored, lengths.tolist(), strict=True)])
    facts = loss(exact, stored, are_logits=are_logits)
    if isinstance(stored, TopLogits):
        facts["agreement"] = float((exact.argmax(-1) == stored.indices[:, 0]).double().mean())
    enough = facts.get("agreement", 1.0) >= _LEAST_AGREEMENT and facts.get("cosine", 1.0) >= _LEAST_COSINE
    enough = enough and facts.get("entropy_error", 0.0) <= _MOST_ENTROPY_ERROR
    return {**facts, "ok": enough}
