"""`fc import probabilities`: what a teacher said elsewhere in, a sealed cache out; no teacher is loaded."""

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featurecache.errors import UsageError
from featurecache.sources import Source, is_remote, location, open_data
from featurecache.types import Json
from pipelines.events import Message, Run
from pipelines.fill import Lesson, SplitPlan, loading
from pipelines.joined_records import join_records
from pipelines.new_cache import make_cache, refuse_others

if TYPE_CHECKING:
    from featurecache.inputs import ImageInput, TextInput
    from featurecache.records import Records
    from featurecache.records.form import Kind
    from featurecache.teachers.recorded import RecordedTeacher

__all__ = ["import_probabilities"]

_IMG_SIZE, _CROP_PCT, _MAX_LENGTH = 224, 0.875, 128
_BATCH_SIZE = 256
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._-]+")


def import_probabilities(
    *,
    file: Path | str,
    data: str | Sequence[str],
    out: Path | str = "./cache",
    splits: Sequence[str] | None = None,
    are: "Kind | None" = None,
    key_column: str | None = None,
    classes: Sequence[str] | None = None,
    tolerance: float = 1e-3,
    name: str | None = None,
    tokenizer: str | None = None,
    max_length: int | None = None,
    img_size: int | None = None,
    crop_pct: float | None = None,
    store_inputs: int | None = None,
    encode: str | None = None,
    temperatures: Sequence[float] = (1.0, 2.0, 4.0),
    workers: int | None = None,
    text_column: str | None = None,
    label_column: str | None = None,
    id_column: str | None = None,
    image_column: str | None = None,
    limit: int | None = None,
) -> Run[Json]:
    """Make a cache of what a file says of the samples of data, joined by key; run again, it goes on where it was.

    `file` has one record for each sample: `featurecache.records.read_records` says of which form, and what `are`,
    `key_column`, `classes` and `tolerance` are. Samples without a record become invalid rows. `tokenizer` (a file, a
    folder or a teacher's name) and `max_length` are how students see texts; `img_size` and `crop_pct` how they see
    images. `encode` is the encoding of the logits, float32 by default. Returns what `extract_cache` does, and with
    "records" how many there are and how many are about no sample. Raises UsageError for records that cannot be, or of
    other samples; IdentityError if the cache was made from something else; DiskFullError.
    """
    from featurecache.records import read_records
    from featurecache.store.objects import LocalObjects

    began = time.monotonic()
    given = {"text_column": text_column, "label_column": label_column, "id_column": id_column}
    columns: dict[str, Any] = {column: value for column, value in given.items() if value}
    columns |= {"image_column": image_column} if image_column else {}
    if fetched := [text for text in location(data) if is_remote(text)]:
        yield Message(f"opening {', '.join(fetched)}: what is not here yet is fetched first")
    sources = open_data(data, splits=splits, limit=limit, **columns)
    first = next(iter(sources.values()))
    network_input = _input(first, tokenizer, max_length, img_size, crop_pct)
    teacher_name = _name(name, Path(file))
    yield Message(f"reading {file}")
    records = read_records(
        file, key_column=key_column, are=are, classes=classes, data_classes=first.class_names, tolerance=tolerance
    )
    joined = join_records(records, sources)
    yield from joined.told()
    teacher = partial(_teacher, teacher_name, network_input, records)
    encodings = {"logits": encode or "float32"}
    shown = Path(file).name.encode(errors="replace").decode()  # a file's name may be no valid text
    said = {"file": shown, "count": len(records), "unused": joined.unused, "columns": _columns(records)}
    plans = [
        _plan(
            teacher(joined.record_of[split]), source, split, said, size=store_inputs, encode=encodings, at=temperatures
        )
        for split, source in sources.items()
    ]
    refuse_others(LocalObjects(out), plans)
    # looking up takes no device; decoding the samples, for their hashes, takes processes
    options = partial(loading, device="cpu", workers=workers, batch_size=_BATCH_SIZE)
    hint = {"data": location(data), "limit": limit, **columns}
    facts = yield from make_cache(out, plans, options, source=hint, began=began)
    return {**facts, "records": {"count": len(records), "unused": joined.unused}}


def _input(
    source: Source, tokenizer: str | None, max_length: int | None, img_size: int | None, crop_pct: float | None
) -> "ImageInput | TextInput":
    """How students see the samples, since the teacher does not say. Raises UsageError for options of the other kind."""
    from featurecache.inputs import ImageInput, TextInput

    of_texts = {"--tokenizer": tokenizer, "--max-length": max_length}
    of_images = {"--img-size": img_size, "--crop-pct": crop_pct}
    of_others = of_texts if source.modality == "image" else of_images
    if unused := [flag for flag, value in of_others.items() if value is not None]:
        raise UsageError(f"{', '.join(unused)} cannot be used: the data are {source.modality}s", hint="leave it out")
    if source.modality == "image":
        return ImageInput(size=img_size or _IMG_SIZE, crop_pct=_CROP_PCT if crop_pct is None else crop_pct)
    if tokenizer is None:
        hint = "--tokenizer minilm, a folder with a tokenizer.json, or that file: what students shall have"
        raise UsageError("texts need a tokenizer, and no teacher is here that has one", hint=hint)
    from featurecache.teachers.tokenizer_files import find_tokenizer

    return TextInput(find_tokenizer(tokenizer), max_length=max_length or _MAX_LENGTH)


def _name(given: str | None, file: Path) -> str:
    """The teacher's name. Raises UsageError for one that could not be typed everywhere."""
    stem = file.name.removesuffix(".gz").rpartition(".")[0] if given is None else given
    legal = _NOT_IN_NAMES.sub("-", stem)[:64].strip("-.") or "records"
    if given is not None and given != legal:
        raise UsageError(f"--name {given!r} cannot name a teacher", hint=f"for example --name {legal}")
    return legal


def _columns(records: "Records") -> Json:
    """Which columns were read."""
    return {
        "key": records.form.key,
        "split": records.form.split,
        "values": records.form.column or "a column for each class",
    }


def _teacher(
    name: str, network_input: "ImageInput | TextInput", records: "Records", record_of: np.ndarray
) -> "RecordedTeacher":
    from featurecache.fingerprint import hash_json
    from featurecache.records import LEAST
    from featurecache.teachers.recorded import RecordedTeacher

    form = records.form
    config = {"are": form.are, **_columns(records), "classes_sha256": hash_json(list(form.classes.names))}
    if form.are == "probabilities":
        config["least"] = LEAST
    return RecordedTeacher(
        name,
        network_input,
        records.logits,
        record_of=record_of,
        classes=form.classes.names,
        config=config,
        sha256=records.sha256,
    )


def _plan(
    teacher: "RecordedTeacher",
    source: Source,
    split: str,
    said: Json,
    *,
    size: int | None,
    encode: Mapping[str, str],
    at: Sequence[float],
) -> SplitPlan:
    """What one split is to hold: the plain view alone."""
    from featurecache.plan import plan_part
    from featurecache.store_inputs import plan_inputs

    if size is not None and source.modality == "text":
        raise UsageError("--store-inputs is for images", hint="the tokens of texts are always stored")
    part = plan_part(teacher, source, split, encode=encode, temperatures=at)
    part = replace(part, provenance={**part.provenance, "records": said})
    stores = source.modality == "text" or size is not None
    inputs = plan_inputs(source, split, teacher.input, size=size) if stores else None
    return SplitPlan(split, source, lessons=[Lesson(teacher, part)], inputs=inputs, network_input=teacher.input)
