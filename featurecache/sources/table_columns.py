"""Which column of a table holds what: told from names, types, and the notes that Hugging Face data sets leave."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from featurecache.errors import SourceError
from featurecache.sources.text_records import Columns
from featurecache.types import Json, Modality

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Content", "class_labels", "find_content", "find_id", "find_label"]

_IMAGE_NAMES = ("image", "img", "jpg", "jpeg", "png", "webp", "picture", "photo")

Form = Literal["text", "binary", "struct"]


@dataclass(frozen=True, slots=True)
class Content:
    """The column of a table that its samples are in."""

    column: str
    form: Form
    """A text; a file's bytes; or a struct of "bytes" and "path", as Hugging Face data sets keep images."""

    @property
    def modality(self) -> Modality:
        """What the samples are."""
        return "text" if self.form == "text" else "image"


def find_content(schema: "pa.Schema", columns: Columns, place: str) -> Content:
    """The column asked for; else an image column; else the text column, or the only one that can be.

    Raises SourceError, with the columns there are, where there is none or the choice is open.
    """
    forms = {name: form for name, kind in zip(schema.names, schema.types, strict=True) if (form := _form(kind))}
    asked = columns.text
    if columns.image is not None:
        if forms.get(columns.image) not in ("binary", "struct"):
            raise _missing(f"no image column {columns.image!r}", schema, place, "--image-column")
        return Content(columns.image, forms[columns.image])
    if asked is None:
        images = _images(forms, _features(schema))
        if len(images) == 1 or (images and images[0].lower() in _IMAGE_NAMES):
            return Content(images[0], forms[images[0]])
        if images:
            raise _missing(f"several image columns ({', '.join(images)})", schema, place, "--image-column")
    wanted = asked or "text"
    if forms.get(wanted) == "text":
        return Content(wanted, "text")
    taken = (columns.label or "label", columns.id or "id")
    others = [name for name in forms if forms[name] == "text" and name not in taken]
    if asked is None and wanted not in schema.names and len(others) == 1:
        return Content(others[0], "text")
    raise _missing(f"no text column {wanted!r}", schema, place, "--text-column or --image-column")


def find_label(schema: "pa.Schema", columns: Columns, place: str) -> tuple[str | None, tuple[str, ...]]:
    """The label's column, None where there is none, and the class names that the file gives for it.

    Where no column has the usual name, the only one of Hugging Face's type ClassLabel is taken. Raises SourceError for
    a column asked for that is not there.
    """
    named = class_labels(schema)
    wanted = columns.label or "label"
    if wanted in schema.names:
        return wanted, named.get(wanted, ())
    if columns.label is not None:
        raise _missing(f"no label column {columns.label!r}", schema, place, "--label-column")
    return next(iter(named.items())) if len(named) == 1 else (None, ())


def find_id(schema: "pa.Schema", columns: Columns, place: str) -> str | None:
    """The id's column, None where there is none. Raises SourceError for one asked for that is not there."""
    wanted = columns.id or "id"
    if wanted in schema.names:
        return wanted
    if columns.id is not None:
        raise _missing(f"no id column {columns.id!r}", schema, place, "--id-column")
    return None


def _form(kind: "pa.DataType") -> Form | None:
    from pyarrow import types

    if types.is_dictionary(kind):
        kind = kind.value_type
    if types.is_string(kind) or types.is_large_string(kind):
        return "text"
    if types.is_binary(kind) or types.is_large_binary(kind):
        return "binary"
    if types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        inner = kind.field("bytes").type
        return "struct" if types.is_binary(inner) or types.is_large_binary(inner) else None
    return None


def _images(forms: dict[str, Form], features: Mapping[str, Json]) -> list[str]:
    """Columns that could be the image: the usual names first, in their order; a binary one only by its name.

    Sounds and films are structs too: where Hugging Face's notes tell of a struct, they must call it an image.
    """
    could = [
        name for name in forms if forms[name] == "binary" or (forms[name] == "struct" and _is_image(features, name))
    ]
    usual = [name for wanted in _IMAGE_NAMES for name in could if name.lower() == wanted]
    return usual + [name for name in could if forms[name] == "struct" and name not in usual]


def _is_image(features: Mapping[str, Json], name: str) -> bool:
    feature = features.get(name)
    return not isinstance(feature, dict) or feature.get("_type", "Image") == "Image"


def class_labels(schema: "pa.Schema") -> dict[str, tuple[str, ...]]:
    """Class names by column, from Hugging Face's notes."""
    labels = {name: feature for name, feature in _features(schema).items() if _is_class_label(feature)}
    return {name: tuple(feature["names"]) for name, feature in labels.items() if name in schema.names}


def _features(schema: "pa.Schema") -> dict[str, Json]:
    """What the `datasets` library notes on each column in a schema; empty where it makes no sense."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return {}
    return features if isinstance(features, dict) else {}


def _is_class_label(feature: Json) -> bool:
    if not isinstance(feature, dict) or feature.get("_type") != "ClassLabel":
        return False
    names = feature.get("names")
    return isinstance(names, list) and all(isinstance(name, str) for name in names) and len(set(names)) == len(names)


def _missing(what: str, schema: "pa.Schema", place: str, option: str) -> SourceError:
    found: Sequence[str] = [f"{name!r} ({kind})" for name, kind in zip(schema.names, schema.types, strict=True)]
    listed = ", ".join(found[:20]) + (", ..." if len(found) > 20 else "")
    return SourceError(f"{place}: {what}; its columns are: {listed}", hint=f"name the right one with {option}")
