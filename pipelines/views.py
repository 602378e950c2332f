"""`fc views`: what teacher and student are shown of samples in each view, and what the cache says of it."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from featurecache.augment.mask import chosen
from featurecache.errors import UsageError
from featurecache.inputs import ImageInput, TextInput
from featurecache.store.reader import CacheReader
from featurecache.types import NO_LABEL, Json
from pipelines.answers import Answer, Answers, ask
from pipelines.contact_sheet import Cell, Line, Picture, Section, checked_path, draw_sheet, save_sheet
from pipelines.load import open_sealed, open_split, teacher_input
from pipelines.shown import Samples, Shown, check_made_alike, show

__all__ = ["show_views"]

_MOST_CELLS = 256
"""Views on one sheet, which takes half a megabyte of memory for each."""
_MOST_LETTERS = 1000
"""Of a text that is told."""
_LOOKED_THROUGH = 10_000
"""Keys among which one that was mistyped is looked for."""


def show_views(
    *,
    cache: Path | str = "./cache",
    split: str = "train",
    keys: Sequence[str] | None = None,
    views: int = 16,
    data: Sequence[str] | None = None,
    out: Path | str | None = None,
    img_size: int | None = None,
) -> Json:
    """Views of some samples of a cache, at most `views` of each, as training makes them; of images a PNG is drawn.

    `keys` are those of the samples; by default it is the first one that the teacher has outputs for. Samples come from
    `data`, from where the cache says they were, or else from what it holds itself. The student's size is `img_size`, or
    that of the inputs which the cache holds, or half of the teacher's; without `data` such inputs are what it is shown,
    as in training.

    Returns what is shown, and for each sample its views: what they are mixed with or which tokens they change, and the
    teacher's top classes or the nearest rows. Raises UsageError, SourceError, IdentityError for samples that are not
    what the teacher saw.
    """
    opened, digest = open_sealed(str(cache))
    reader = open_split(opened, split)
    of_teacher = teacher_input(opened, reader)
    rows = _rows(reader, list(dict.fromkeys(keys or ())))
    count = _count(reader, views, len(rows))
    check_made_alike(reader, count)
    stored_views = reader.stored_views
    facts: dict[str, Json] = {
        "cache": str(cache),
        "digest": digest,
        "split": split,
        "teacher": str(reader.teacher_part(next(iter(reader.outputs))).facts["teacher"]),
        "views": count,
        "augmentation": stored_views.augmentation.name if stored_views else None,
    }
    path = None
    if isinstance(of_teacher, TextInput):
        _refuse_for_texts({"--out": out, "--img-size": img_size})
    else:
        path = checked_path(Path(out or "views.png"))
    samples = Samples.open(reader, data, of_teacher)
    found = _Sample.all(reader, samples, ask(reader, rows, count), rows)
    facts |= {"samples_from": _origin(samples), **found[0].answers.facts()}
    if isinstance(of_teacher, TextInput):
        return {**facts, "samples": _texts(found, of_teacher, count)}
    assert path is not None
    sides = _Sides.choose(found[0], of_teacher, img_size, stored=not data)
    facts |= sides.facts()
    sheet, told = _sheet(found, sides, facts)
    save_sheet(sheet, path)
    return {**facts, "out": str(path), "width": sheet.width, "height": sheet.height, "samples": told}


@dataclass(frozen=True, slots=True)
class _Sample:
    """One row that is to be shown."""

    reader: CacheReader
    samples: Samples
    answers: Answers
    row: int

    @classmethod
    def all(cls, reader: CacheReader, samples: Samples, answers: Answers, rows: Sequence[int]) -> "list[_Sample]":
        """One for each row."""
        return [cls(reader, samples, answers, row) for row in rows]

    @property
    def key(self) -> str:
        """Of the sample."""
        return self.reader.keys[self.row]

    @property
    def label(self) -> str | None:
        """The name of its class, if it has one."""
        number = int(self.reader.labels[self.row])
        return None if number == NO_LABEL else self.reader.class_names[number]

    def facts(self, views: Sequence[Json]) -> Json:
        """What is told of it."""
        return {"key": self.key, "row": self.row, "label": self.label, "views": list(views)}

    def said(self, view: int) -> Json:
        """What the cache says of it in a view."""
        answer = self.answers.by_view[self.row, view]
        if answer.problem:
            return {"problem": answer.problem}
        return {self.answers.kind: [list(item) for item in answer.items]}


@dataclass(frozen=True, slots=True)
class _Sides:
    """What teacher and student take in."""

    teacher: ImageInput
    student: ImageInput
    why: str
    """What the student's size is."""
    for_student: Samples

    @classmethod
    def choose(cls, sample: _Sample, teacher: ImageInput, img_size: int | None, *, stored: bool) -> "_Sides":
        """With `stored` a student is trained on the inputs that the cache holds, if it holds any."""
        held = sample.reader.stored_inputs(teacher)
        size, why = max(teacher.size // 2, 1), "half of the teacher's"
        if held is not None:
            size, why = held.size, "the size of the stored inputs"
        if img_size:
            size, why = img_size, "as asked for"
        for_student = Samples.held(sample.reader, held) if held is not None and stored else sample.samples
        return cls(teacher, replace(teacher, size=size), why, for_student)

    def facts(self) -> dict[str, Json]:
        """What is told of them."""
        return {
            "teacher_size": self.teacher.size,
            "student_size": self.student.size,
            "student_size_is": self.why,
            "student_samples_from": _origin(self.for_student),
        }


def _rows(reader: CacheReader, keys: Sequence[str]) -> list[int]:
    """The rows of these keys; without keys the first that has outputs. Raises UsageError."""
    if not keys:
        return [int(np.argmax(reader.valid()))]
    rows = reader.rows_of(keys).tolist()
    missing = next((key for key, row in zip(keys, rows, strict=True) if row < 0), None)
    if missing is not None:
        near = difflib.get_close_matches(missing[:200], reader.keys[:_LOOKED_THROUGH], n=1)
        hint = f"did you mean {near[0][:200]!r}?" if near else f"keys look like {reader.keys[0][:200]!r}"
        raise UsageError(f"split {reader.split!r} has no key {missing[:200]!r}", hint=hint)
    return rows


def _count(reader: CacheReader, views: int, samples: int) -> int:
    """How many views are shown. Raises UsageError if it is too much for one sheet."""
    count = min(views, reader.stored_views.stop if reader.stored_views else 1)
    if count * samples > _MOST_CELLS:
        message = f"{samples:,} samples in {count:,} views are more than one sheet has room for"
        raise UsageError(message, hint=f"ask for fewer: {_MOST_CELLS} views in all")
    return count


def _origin(samples: Samples) -> str:
    return "data" if samples.stored is None else "stored inputs"


def _refuse_for_texts(options: Mapping[str, object]) -> None:
    given = next((flag for flag, value in options.items() if value is not None), None)
    if given:
        hint = f"leave {given} out: the views of texts are printed"
        raise UsageError(f"{given} is for images, and this cache is of texts", hint=hint)


def _sheet(found: Sequence[_Sample], sides: _Sides, facts: Json) -> tuple[Image.Image, list[Json]]:
    """The picture, and what is told beside it."""
    sections, told = [], []
    for sample in found:
        original = sample.samples.original(sample.row)
        assert isinstance(original, np.ndarray)
        cells, views, count = [_original_cell(sample, original)], [], facts["views"]
        teacher = show(sample.reader, sample.samples, sides.teacher, sample.row, count)
        student = show(sample.reader, sides.for_student, sides.student, sample.row, count)
        for one, other in zip(teacher, student, strict=True):
            cells.append(_cell(sample, one, other, sides))
            views.append(_told(sample, one))
        sections.append(Section(sample.key, (_sample_note(sample),), tuple(cells)))
        told.append({**sample.facts(views), "original": list(original.shape[:2])})
    sheet = draw_sheet(_notes(facts, found[0].answers), sections, side=sides.teacher.size, other=sides.student.size)
    return sheet, told


def _original_cell(sample: _Sample, original: np.ndarray) -> Cell:
    height, width = original.shape[:2]
    title = "original" if sample.samples.stored is None else "stored frame"
    return Cell(title, (Picture(f"{width:,} x {height:,} pixels", original),), tall=True)


def _cell(sample: _Sample, teacher: Shown, student: Shown, sides: _Sides) -> Cell:
    pictures = tuple(
        Picture(f"{who}, {side.size:,} pixels", _pixels(shown))
        for who, side, shown in (("teacher", sides.teacher, teacher), ("student", sides.student, student))
    )
    lines = _lines(sample.answers.by_view[sample.row, teacher.view], sample.answers.kind)
    if teacher.mixed_with:
        lines.append(Line(f"{teacher.own_share:.0%} own, mixed with"))
        lines.append(Line(teacher.mixed_with))
    return Cell(f"view {teacher.view}" + (", plain" if teacher.view == 0 else ""), pictures, tuple(lines))


def _lines(answer: Answer, kind: str) -> list[Line]:
    if answer.problem:
        return [Line(answer.problem)]
    if kind == "classes":
        return [Line(name, f"{value:.1%}", value) for name, value in answer.items]
    return [Line(name, f"{value:.3f}") for name, value in answer.items]


def _pixels(shown: Shown) -> np.ndarray:
    """uint8 (size, size, 3)."""
    pixels: np.ndarray = shown.inputs["images"][0].permute(1, 2, 0).contiguous().numpy()
    return pixels


def _sample_note(sample: _Sample) -> str:
    label = "" if sample.label is None else f", label {sample.label}"
    return f"row {sample.row:,} of {sample.reader.split}{label}"


def _notes(facts: Json, answers: Answers) -> list[str]:
    """What stands above the whole sheet."""
    augmentation = f"augmentation {facts['augmentation']}" if facts["augmentation"] else "no random views"
    student = f"Student: {facts['student_size']:,} pixels, {facts['student_size_is']}"
    if facts["student_samples_from"] != "data":
        student += ", made of the inputs that the cache holds"
    teacher = f"Teacher {facts['teacher']}: {facts['teacher_size']:,} pixels, {augmentation}"
    if facts["samples_from"] != "data":
        teacher += ", made of the inputs that the cache holds: the samples are not here"
    by = "" if answers.teacher == facts["teacher"] else f", of {answers.teacher}"
    return [f"{teacher}.", f"{student}.", f"Under each view: {answers.legend}{by}."]


def _told(sample: _Sample, shown: Shown) -> Json:
    mixed = {"mixed_with": shown.mixed_with, "own_share": round(shown.own_share, 6)} if shown.mixed_with else {}
    return {"view": shown.view, **mixed, **sample.said(shown.view)}


def _texts(found: Sequence[_Sample], network_input: TextInput, count: int) -> list[Json]:
    """What is told of texts."""
    told = []
    for sample in found:
        text = sample.samples.original(sample.row)
        assert isinstance(text, str)
        shown = list(show(sample.reader, sample.samples, network_input, sample.row, count))
        plain = _ids(shown[0])
        views = [{**_told(sample, one), **_tokens(one, plain, network_input)} for one in shown]
        told.append({**sample.facts(views), "text": text[:_MOST_LETTERS] or None})
    return told


def _ids(shown: Shown) -> list[int]:
    ids: list[int] = shown.inputs["ids"][0].tolist()
    return ids


def _tokens(shown: Shown, plain: Sequence[int], network_input: TextInput) -> Json:
    """The tokens of a view; where it has chosen one, also the one that was there."""
    ids = _ids(shown)
    names = [_token(network_input, number) for number in ids]
    positions = [at for at in chosen(shown.parameters).tolist() if at < len(ids)] if shown.parameters.size else []
    was = [{"position": at, "was": _token(network_input, plain[at])} for at in positions]
    return {"tokens": names, "chosen": was}


def _token(network_input: TextInput, number: int) -> str:
    name = network_input.tokenizer.id_to_token(number)
    return f"#{number}" if name is None else str(name)
