"""How data lies on disk: which folder or files belong to which split, told from their names."""

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from featurecache.errors import SourceError
from featurecache.sources.image_folder import find_images
from featurecache.sources.text_records import TEXT_FORMATS

__all__ = ["Layout", "Place", "data_names", "find_layout", "group_files", "split_name", "split_of_tar"]

_ALIASES = {"valid": "val", "validation": "val", "dev": "val"}
_SPLITS = ("train", "val", "test", *_ALIASES)
_IMAGENET = (Path("ILSVRC/Data/CLS-LOC"), Path("Data/CLS-LOC"))
_PAPERWORK = ("readme", "license", "licence", "notice", "changelog")
"""Stems of .txt files that are not data."""

_SHARD_NUMBER = re.compile(r"(^|[-_.])\d+(-of-\d+(-[0-9a-f]{16})?)?$")
_SPLIT_WORD = re.compile(rf"(?:^|[-_.])({'|'.join(_SPLITS)})$")

Kind = Literal["image-folder", "tar-shards", "text-files", "parquet-files"]


@dataclass(frozen=True, slots=True)
class Place:
    """What one split is read from."""

    kind: Kind
    paths: tuple[Path, ...]
    """One folder of images, or one file or more."""


Layout = dict[str, Place]
"""From the name of each split to its place."""


@dataclass(frozen=True, slots=True)
class _Name:
    """glyphs-train-000000.tar: stem "glyphs", split "train", tar shards."""

    stem: str
    split: str
    kind: Kind


def split_name(name: str) -> str:
    """The name with its alias resolved ("valid" is "val"). Raises SourceError for what cannot name a split."""
    if not re.fullmatch(r"[a-z][a-z0-9_-]*", name):
        raise SourceError(f"{name!r} cannot name a split", hint="use lower-case letters, digits, - and _: train=PATH")
    return _ALIASES.get(name, name)


def find_layout(path: Path) -> Layout:
    """The splits at a folder, a file, or a path that many files begin with; empty where there is nothing.

    Raises SourceError for a folder whose files belong to more than one data set.
    """
    if path.is_dir():
        return _folder_layout(path)
    if path.is_file():
        return group_files([path])
    files = _data_files(path.parent)
    return _one_kind(path, [file for file, name in files if path.name in (name.stem, _base(file))])


def group_files(files: Iterable[Path]) -> Layout:
    """Files grouped by the split in their names ("train" where there is none). Raises SourceError for mixed kinds."""
    splits: dict[str, list[Path]] = defaultdict(list)
    kinds: dict[str, Kind] = {}
    for file in sorted(set(files)):
        name = _parse(file)
        if name is None:
            kinds_known = ", ".join((".tar", *TEXT_FORMATS, ".parquet"))
            raise SourceError(f"{file} is of no known kind", hint=f"known files: {kinds_known}; or a folder of images")
        if kinds.setdefault(name.split, name.kind) != name.kind:
            raise SourceError(f"{file} and {splits[name.split][0]} are of two kinds", hint="name the files of one kind")
        splits[name.split].append(file)
    return {split: Place(kinds[split], tuple(members)) for split, members in splits.items()}


def split_of_tar(file: Path) -> str | None:
    """The split in the name of a .tar, "train" where there is none; None for another kind of file."""
    name = _parse(file)
    return name.split if name and name.kind == "tar-shards" else None


def data_names(folder: Path) -> set[str]:
    """What in a folder could be meant by a name: its sub-folders, and the stems of its data files."""
    if not folder.is_dir():
        return set()
    return {inner.name for inner in _folders(folder)} | {name.stem or _base(file) for file, name in _data_files(folder)}


def _folder_layout(folder: Path) -> Layout:
    for nested in _IMAGENET:
        if (folder / nested).is_dir():
            return _folder_layout(folder / nested)
    layout: Layout = {}
    for inner in _split_folders(folder):
        split = split_name(inner.name)
        if split in layout:
            raise SourceError(f"{folder} has two folders for its split {split!r}", hint="name one: val=FOLDER")
        place = _single_place(inner)
        if place is not None:
            layout[split] = place
    if layout:
        return layout
    if any(_has_images(inner) for inner in _folders(folder)):  # files beside class folders describe them
        return {"train": Place("image-folder", (folder,))}
    layout = _one_kind(folder, [file for file, _ in _data_files(folder)])
    if not layout and (folder / "data").is_dir() and not _has_images(folder):  # a repository of the Hugging Face hub
        return _folder_layout(folder / "data")
    return layout or ({"train": Place("image-folder", (folder,))} if _has_images(folder) else {})


def _split_folders(folder: Path) -> list[Path]:
    """Sub-folders named as splits are; none where a single one stands among others, as a class called "train" does."""
    named = [inner for inner in _folders(folder) if inner.name in _SPLITS]
    others = (inner for inner in _folders(folder) if inner.name not in _SPLITS)
    return named if len(named) > 1 or (named and not any(map(_has_images, others))) else []


def _single_place(folder: Path) -> Place | None:
    if any(_has_images(inner) for inner in _folders(folder)):
        return Place("image-folder", (folder,))
    files = [file for file, _ in _data_files(folder)]
    places = list(_one_kind(folder, files).values())
    if len(places) > 1:
        raise SourceError(f"{folder} holds {len(places)} splits of its own", hint="name the files: train=A test=B")
    return places[0] if places else (Place("image-folder", (folder,)) if _has_images(folder) else None)


def _one_kind(path: Path, files: list[Path]) -> Layout:
    names = [name for file in files if (name := _parse(file))]
    if len({name.kind for name in names}) > 1 or len({name.stem for name in names}) > 1:
        listed = ", ".join(file.name for file in files[:8]) + (", ..." if len(files) > 8 else "")
        folder = path if path.is_dir() else path.parent
        stems = sorted({name.stem for name in names if name.stem})
        choices = [str(folder / stem) for stem in stems] if len(stems) > 1 else []
        pattern = f"'{folder / '*'}{files[0].name.removeprefix(_base(files[0]))}'"
        hint = f"name one: {', '.join([*choices, f'or a pattern such as {pattern}'])}"
        raise SourceError(f"{folder} holds more than one data set: {listed}", hint=hint)
    return group_files(files)


def _data_files(folder: Path) -> Iterator[tuple[Path, _Name]]:
    if not folder.is_dir():
        return
    for file in sorted(folder.iterdir()):
        name = _parse(file)
        if name is None or file.name.startswith(".") or (file.suffix == ".txt" and name.stem.lower() in _PAPERWORK):
            continue
        if file.is_file() or file.is_symlink():  # a dangling link is missing data, told when it is opened
            yield file, name


def _parse(file: Path) -> _Name | None:
    suffix = Path(file.name.removesuffix(".gz")).suffix.lower()
    if suffix == ".tar" and not file.name.endswith(".gz"):
        kind: Kind = "tar-shards"
    elif suffix in TEXT_FORMATS:
        kind = "text-files"
    elif suffix == ".parquet" and not file.name.endswith(".gz"):
        kind = "parquet-files"
    else:
        return None
    stem = _SHARD_NUMBER.sub("", _base(file))
    found = _SPLIT_WORD.search(stem)
    return _Name(stem[: found.start()], split_name(found[1]), kind) if found else _Name(stem, "train", kind)


def _base(file: Path) -> str:
    return Path(file.name.removesuffix(".gz")).stem


def _folders(folder: Path) -> list[Path]:
    with os.scandir(folder) as entries:  # tells folders apart without a look at each of a million images
        return sorted(Path(entry.path) for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def _has_images(folder: Path) -> bool:
    return next(find_images(folder), None) is not None
