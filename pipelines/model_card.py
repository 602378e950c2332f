"""README.md of an exported student: how to load it, what it takes and gives, whom it learned from, on what terms."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from featurecache.types import Json
from pipelines.lineage import place_name
from pipelines.visible import shortened, visible

if TYPE_CHECKING:
    from featurecache.inputs import ImageInput, TextInput
    from student.export import Exported
    from student.models import Student

__all__ = ["Provenance", "model_card", "shown"]

_LONGEST_NAME = 200
_MOST_CLASSES = 100
_NOT_IN_CODE = re.compile("[`<>&]")
_TAGS = {"image": "image-feature-extraction", "text": "feature-extraction"}
_LIBRARIES = {"timm": "timm", "transformers": "transformers", "onnx": "onnx", "safetensors": "featurecache"}
_SETTINGS = {
    "steps": "optimizer steps",
    "batch_size": "batch size",
    "learning_rate": "peak learning rate",
    "weight_decay": "weight decay",
    "precision": "precision",
    "views": "views of each sample",
    "seed": "seed",
    "labels": "labels seen",
}
_SCORES = {
    "accuracy": "accuracy",
    "teacher_accuracy": "accuracy of the teacher",
    "agreement": "agreement with the teacher's first class",
    "neighbours": "nearest neighbours on features",
    "linear": "linear probe on features",
    "cosine": "cosine to the teacher's embedding",
    "kl": "KL from the teacher, nats",
}


class Provenance(NamedTuple):
    """What a card says besides what is in the files."""

    facts: Json
    """As `load_student` gives them."""
    recipe: Json
    summary: Json
    scores: Json
    """By split."""
    class_names: Mapping[str, Sequence[str]]
    """Of heads, in order."""
    teacher_license: str | None = None
    data_license: str | None = None


def model_card(kind: str, student: "Student", exported: "Exported", run: Provenance) -> str:
    """Markdown with front matter. Names from the cache are shown, and never act as markup or HTML."""
    backbone, teachers = student.backbone, _teachers(run.facts)
    summary = f"{run.summary['parameters']:,} parameters, trained with featurecache from what {teachers} gave"
    lines = [
        "---",
        f"library_name: {_LIBRARIES[kind]}",
        f"pipeline_tag: {'image-classification' if exported.classifier else _TAGS[backbone.input.modality]}",
        "tags: [knowledge-distillation, featurecache]",
        "---",
        "",
        f"# {shown(backbone.name)}, taught from a cache",
        "",
        f"A student of {summary}, once, into a cache.",
        *_section("Use", _usage(exported)),
        *_section("Input", _input(backbone.input)),
        *_section("Outputs", _outputs(student, exported)),
        *_section("Classes", _classes(run.class_names)),
        *_section("Where it comes from", _lineage(run)),
        *_section("Training", _training(run)),
        *_section("Scores", _scores(run.scores)),
        *_section("Licences", _licences(run)),
    ]
    return "\n".join(lines) + "\n"


def shown(text: object) -> str:
    """A name as anybody may have written it, in Markdown: its own letters, no markup, no HTML, no control character."""
    text = shortened(visible(str(text)), _LONGEST_NAME)
    if not text.strip():
        return "(no name)"
    if not _NOT_IN_CODE.search(text):
        return f"`{text}`"  # in which an address is no link
    return "".join(char if char.isalnum() or not char.isascii() else f"&#{ord(char)};" for char in text)


def _section(title: str, lines: Iterator[str]) -> list[str]:
    found = list(lines)
    return ["", f"## {title}", "", *found] if found else []


def _usage(exported: "Exported") -> Iterator[str]:
    yield "In this folder:"
    yield from ("", "```python", exported.usage.rstrip("\n"), "```")
    if exported.notes:
        yield ""
    yield from (f"* {note}" for note in exported.notes)


def _input(network_input: "ImageInput | TextInput") -> Iterator[str]:
    value = network_input.to_json()
    if value["kind"] == "text":
        yield f"* texts, as tokens of `tokenizer.json`, cut at {network_input.max_length:,}"  # type: ignore[union-attr]
        return
    yield f"* RGB images of {value['size']} x {value['size']} pixels"
    how = "both sides" if value["crop_mode"] == "squash" else "the shorter side"
    scaled = int(value["size"] / value["crop_pct"])
    yield f"* {how} resized to {scaled} ({value['interpolation']}, crop_pct {value['crop_pct']:g}), the centre cut out"
    yield f"* scaled to [0, 1], less mean {value['mean']}, over standard deviation {value['std']}"


def _outputs(student: "Student", exported: "Exported") -> Iterator[str]:
    yield f"* `features`: {student.backbone.features} numbers, pooled"
    for name, width in student.widths.items():
        where = ", the model's own classifier" if name == exported.classifier else ""
        where = ", in `heads.safetensors`" if name in exported.heads else where
        yield f"* {shown(name)}: {width:,} numbers, a linear layer upon the features{where}"
    yield from (f"* {shown(name)} is another name of {shown(head)}" for name, head in student.shared.items())


def _classes(class_names: Mapping[str, Sequence[str]]) -> Iterator[str]:
    for head, names in class_names.items():
        left = f", the first {_MOST_CLASSES}" if len(names) > _MOST_CLASSES else ""
        yield f"{shown(head)}, {len(names):,} in this order{left}:"
        yield ""
        yield from (f"{number}. {shown(name)}" for number, name in enumerate(names[:_MOST_CLASSES]))


def _learned(facts: Json) -> dict[str, Json]:
    return facts.get("lineage", {}).get("outputs", {})


def _teachers(facts: Json) -> str:
    names = dict.fromkeys(shown(output["teacher"]) for output in _learned(facts).values())
    return " and ".join(names) if names else "a teacher"


def _lineage(run: Provenance) -> Iterator[str]:
    yield f"* digest of the cache: {shown(run.facts.get('digest') or 'not recorded')}"
    for name, output in _learned(run.facts).items():
        words = [f"teacher {shown(output['teacher'])}"]
        words += [f"{of} {shown(output[of])}" for of in ("library", "model", "revision") if output.get(of)]
        hashed = {"weights_sha256": "its weights", "records_sha256": "the file with what it said"}
        words += [f"SHA-256 of {what} {shown(output[of])}" for of, what in hashed.items() if output.get(of)]
        words += [f"by the linear probe {shown(output['probe'])}"] if output.get("probe") else []
        yield f"* {shown(name)} was learned from {', '.join(words)}"
    lineage = run.facts.get("lineage", {})
    places = run.recipe.get("data") or lineage.get("data") or []
    named = " and ".join(shown(place_name(place)) for place in places) or "not recorded"
    rows = f", {lineage['rows']:,} rows" if lineage.get("rows") else ""
    yield f"* data: {named}, split {shown(run.recipe['split'])}{rows}"
    yield "* these names are the cache's own; the hashes say what was used"


def _training(run: Provenance) -> Iterator[str]:
    yield f"* objective {shown(run.recipe['objective'])}"
    values = {text: run.recipe.get(name) for name, text in _SETTINGS.items()}
    yield from (f"* {text}: {shown(value)}" for text, value in values.items() if value is not None)
    for part, count in run.summary.get("rows", {}).items():
        if part in ("training", "validation"):
            yield f"* rows for {part}: {count:,}"
    if run.recipe.get("init_from"):
        yield f"* it started from the weights of {shown(place_name(run.recipe['init_from']))}"


def _scores(scores: Json) -> Iterator[str]:
    if not scores:
        yield "Not evaluated; `featurecache evaluate RUN` does, before an export."
    for split, values in scores.items():
        known = {text: values.get(name) for name, text in _SCORES.items()}
        numbers = [f"{text} {value:.4f}" for text, value in known.items() if isinstance(value, float)]
        yield f"* on {values['rows']:,} rows of {shown(split)}: {', '.join(numbers) or 'nothing could be counted'}"


def _licences(run: Provenance) -> Iterator[str]:
    recorded = {output["teacher"]: output.get("license") for output in _learned(run.facts).values()}
    if run.teacher_license:
        yield f"* teacher: {shown(run.teacher_license)}, as stated at the export"
    for teacher, name in recorded.items() if not run.teacher_license else ():
        found = f"{shown(name)}, as stated beside its weights" if name else "not recorded"
        yield f"* teacher {shown(teacher)}: {found}"
    if not recorded and not run.teacher_license:
        yield "* teacher: not recorded"
    yield f"* data: {shown(run.data_license) + ', as stated at the export' if run.data_license else 'not recorded'}"
    yield "* this student: not stated; what it may be used for depends on these, and on the weights it started from"
