"""`fc export`: the trained student of a run, as folders that other libraries load."""

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from featurecache.errors import UsageError
from featurecache.types import Json
from pipelines.events import Message, Run
from pipelines.run_dir import RunDir

__all__ = ["export_run"]


def export_run(
    *,
    run: Path | str,
    to: Sequence[str] = ("safetensors",),
    out: Path | str | None = None,
    teacher_license: str | None = None,
    data_license: str | None = None,
) -> Run[Json]:
    """Write the student of a finished run as "safetensors", "timm", "transformers" or "onnx", each with its card.

    One kind goes to `out`, several to `out`/KIND, by default RUN/export/KIND: all of them, or nothing where one fails.
    Each is loaded again by the library it is for, and what that gives is compared with the student. Returns run,
    student, digest, and for each kind path, bytes, largest_difference, classifier and heads. Raises UsageError for a
    run that is not finished, a kind that is not for its student, a package that is missing, and a folder that is not
    empty; FeatureCacheError if a library gives something else than the student.
    """
    from pipelines.model_card import Provenance, model_card
    from student.export import EXPORTS, load_student

    directory, kinds = RunDir(run), list(dict.fromkeys(to))
    exporters = {kind: EXPORTS.get(kind) for kind in kinds}
    if not kinds:
        raise UsageError("no kind of export is named", hint=f"known: {', '.join(EXPORTS)}")
    recipe = directory.recipe()
    if not directory.is_finished():
        hint = "finish it: run the same `fc train-student` again, with --resume"
        raise UsageError(f"the run {run} is not finished, so there is no student to export", hint=hint)
    places = _places(Path(out) if out else None, directory.path / "export", kinds)
    student, facts = load_student(directory.student)
    told = Provenance(
        facts=facts,
        recipe=recipe,
        summary=directory.summary(),
        scores=directory.scores(),
        class_names=_class_names(student.widths, facts),
        teacher_license=teacher_license,
        data_license=data_license,
    )
    found: dict[str, Json] = {}
    with _staging(next(iter(places.values()))) as staging:
        for kind, export in exporters.items():
            yield Message(f"{kind}: writing {student.backbone.name}, then comparing it with the student")
            folder = staging / kind
            folder.mkdir()
            exported = export(student, folder, facts=facts, class_names=told.class_names)
            (folder / "README.md").write_text(model_card(kind, student, exported, told), encoding="utf-8")
            found[kind] = {
                "path": str(places[kind]),
                "bytes": _keep(folder),
                "largest_difference": exported.largest_difference,
                "classifier": exported.classifier,
                "heads": list(exported.heads),
            }
        for kind, place in places.items():
            place.parent.mkdir(parents=True, exist_ok=True)
            (staging / kind).rename(place)
    return {
        "run": str(directory.path),
        "student": student.backbone.name,
        "digest": facts.get("digest"),
        "exports": found,
    }


def _places(out: Path | None, default: Path, kinds: Sequence[str]) -> dict[str, Path]:
    """Where each kind goes. Raises UsageError if something is there."""
    places = {kind: (out or default) / kind for kind in kinds}
    if out is not None and len(kinds) == 1:
        places = {kinds[0]: out}
    for place in places.values():
        if place.is_symlink() or (place.exists() and not (place.is_dir() and not any(place.iterdir()))):
            raise UsageError(f"{place} is not empty", hint="choose another --out, or remove what is there")
        above = next(parent for parent in place.absolute().parents if parent.exists())
        if not above.is_dir():
            raise UsageError(f"cannot use {place}: {above} is a file", hint="choose another --out")
    return places


@contextmanager
def _staging(place: Path) -> Iterator[Path]:
    """A folder on the same disk, that is gone afterwards with all that is still in it."""
    above = next(parent for parent in place.absolute().parents if parent.is_dir())
    with tempfile.TemporaryDirectory(prefix=".export-", dir=above, ignore_cleanup_errors=True) as staging:
        yield Path(staging)


def _keep(folder: Path) -> int:
    """Have the disk hold what was written, before it gets its name; returns its bytes."""
    total = 0
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb+") as file:
                os.fsync(file.fileno())
            total += path.stat().st_size
    return total


def _class_names(widths: dict[str, int], facts: Json) -> dict[str, list[str]]:
    """Names of the numbers that heads give, where each has one: the data's of "labels", else those of its teacher."""
    learned = facts.get("lineage", {}).get("outputs", {})
    names = {head: output.get("classes") or [] for head, output in learned.items()}
    names["labels"] = facts.get("class_names") or []
    return {head: names[head] for head, width in widths.items() if len(names.get(head, ())) == width}
