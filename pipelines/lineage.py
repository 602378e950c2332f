"""Whose outputs a student learned from: what stays with it when the cache is elsewhere. All of it is hearsay."""

from collections.abc import Mapping
from pathlib import PurePath
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from featurecache.types import Json

if TYPE_CHECKING:
    from featurecache.store.reader import CacheReader

__all__ = ["lineage", "place_name"]


def lineage(reader: "CacheReader", outputs: Mapping[str, "tuple[CacheReader, str]"]) -> Json:
    """{"data": names of where the samples were, "outputs": {name: what made it}} of a split, without a path.

    `outputs` says for each output which reader has it, and under which name. An output has the teacher's name, library,
    model, weights_sha256 (of one that was imported, records_sha256), revision, license, made_by, its class names, and
    the probe that made logits of an embedding; what the cache does not say is null.
    """
    origin = reader.cache.origin(reader.split)
    places = origin.get("data") if isinstance(origin, dict) else None
    return {
        "data": [place_name(place) for place in places if isinstance(place, str)] if isinstance(places, list) else [],
        "split": reader.split,
        "rows": len(reader),
        "outputs": {name: _made_by(*found) for name, found in outputs.items()},
    }


def _made_by(reader: "CacheReader", output: str) -> Json:
    part, own = reader.teacher_part(output), reader.output_part(output)
    identity, origin = (_mapping(facts.get("teacher")) for facts in (part.identity, part.provenance))
    said = {name: identity.get(name) for name in ("library", "model", "weights_sha256", "records_sha256")}
    said |= {name: origin.get(name) for name in ("revision", "license")}
    return {
        "teacher": part.facts["teacher"],
        **{name: value if isinstance(value, str) else None for name, value in said.items()},
        "made_by": reader.made_by(output),
        "probe": own.prefix if own.kind == "probe" else None,
        "classes": list(reader.outputs[output].classes),
    }


def _mapping(value: Json) -> dict[str, Json]:
    return value if isinstance(value, dict) else {}


def place_name(text: str) -> str:
    """The last name in a path, or host and path of an address: neither a home folder nor a token goes further."""
    split, equals, place = text.rpartition("=")
    named = f"{split}=" if equals and split.isidentifier() else ""
    place = place if named else text
    if "://" in place:
        address = urlsplit(place)
        return f"{named}{address.scheme}://{address.hostname or ''}{address.path}"
    is_path = place.startswith(("/", "~", ".")) or "\\" in place
    return named + (PurePath(place.replace("\\", "/")).name if is_path else place)
