"""What a recipe reads that its settings only name, as hashes: nothing is taken up that came of other content."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from featurecache.fingerprint import hash_json
from featurecache.sources import Source, open_data
from featurecache.types import Json
from pipelines.load import open_sealed
from pipelines.recipes.recipe import Sections

__all__ = ["contents", "file_hash"]


def contents(data: Sequence[str], cases: Sequence[Sections], *, limit: int | None) -> dict[str, str]:
    """Place to hash: "--data", all of its splits with their labels, and what settings name on this machine.

    Raises SourceError, IncompleteError.
    """
    found = {"--data": hash_json({split: _samples(source) for split, source in open_data(data, limit=limit).items()})}
    for sections in cases:
        teacher = sections["teacher"]
        if teacher["cache"] and teacher["adapt"] != "probe":  # a probe is added to a copy, which stays as it is
            found[teacher["cache"]] = open_sealed(teacher["cache"])[1]
        for name, section in sections.items():
            if texts := section.get("data"):
                found[texts] = open_data([texts], splits=["train"], limit=limit)["train"].fingerprint()
            for key in ("of", "init_from", "model"):
                if name != "arms" and (place := section.get(key)):
                    found |= _files(place)
    return found


def file_hash(file: Path) -> str:
    """SHA-256 of a file. Raises OSError."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _samples(source: Source) -> Json:
    labels = hashlib.sha256(source.labels.astype("<i8").tobytes()).hexdigest()
    return [source.fingerprint(), labels, list(source.class_names)]


def _files(place: str) -> Iterator[tuple[str, str]]:
    """The hash of a file, or of all files of a folder or of a run's student; nothing where a place is a mere name."""
    path = Path(place.removeprefix("hf:").removeprefix("timm:"))
    path = path / "student" if (path / "recipe.json").is_file() else path
    if path.is_file():
        yield place, file_hash(path)
    elif path.is_dir():
        yield place, hash_json({file.name: file_hash(file) for file in sorted(path.iterdir()) if file.is_file()})
