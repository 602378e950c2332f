"""From what a user types for a data set to its splits, each an opened source."""

import difflib
import os
import re
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias, TypeVar

from featurecache.errors import SourceError
from featurecache.sources.base import Source
from featurecache.sources.digits import Digits
from featurecache.sources.image_folder import ImageFolder
from featurecache.sources.layout import Place, data_names, find_layout, group_files, split_name
from featurecache.sources.limited import Limited
from featurecache.sources.patterns import expand_pattern, is_pattern
from featurecache.sources.synthetic import SyntheticImages, SyntheticTexts
from featurecache.sources.tar_shards import TarShards
from featurecache.sources.text_files import TextFiles
from featurecache.sources.text_records import Columns

__all__ = ["location", "open_data"]

_BUILT_IN = re.compile(r"(digits)|(synthetic|synthetic-text)(?::(\d{1,9}))?")
_BUILT_IN_NAMES = ("digits", "synthetic", "synthetic-text")
_SYNTHETIC_COUNT = 1000
_REMOTE = re.compile(r"(hf|pipe):|[A-Za-z][A-Za-z0-9+.-]*://")
_NAMED = re.compile(r"([^=/]+)=(.+)", re.DOTALL)
_NAME = re.compile(r"\w[\w.-]*")
_FIRST = ("train", "val", "test")

_Found: TypeAlias = "dict[str, Place | Source]"
Value = TypeVar("Value")


class _Entry(NamedTuple):
    split: str | None
    text: str


def open_data(
    spec: str | Sequence[str],
    *,
    splits: Sequence[str] | None = None,
    text_column: str = "text",
    label_column: str = "label",
    id_column: str = "id",
    limit: int | None = None,
) -> dict[str, Source]:
    """The splits of a data set: train, val and test first, others sorted; all count classes as the train split does.

    | spec                          | what it means                                                           |
    |-------------------------------|-------------------------------------------------------------------------|
    | "digits", "synthetic[:COUNT]" | built in, as is "synthetic-text[:COUNT]"                                |
    | "NAME"                        | `$FC_DATA/NAME` as a folder, or NAME.tar, NAME-train-000000.tar, ...    |
    | "FOLDER"                      | class folders; or train, val, test; or tars or texts named with a split |
    | "FILE", "FOLDER/STEM"         | one .tar, .jsonl, .csv or .txt (.gz); or all the files with that stem   |
    | "x-{000..146}.tar", "*.jsonl" | a pattern, quoted from the shell                                        |
    | ["train=A", "test=B"]         | each of the above as one named split                                    |

    `splits` selects some, `limit` keeps the first samples of each. Raises SourceError, whose hint says what to type.
    """
    columns = Columns(text=text_column, label=label_column, id=id_column)
    try:
        opened = _open_all(_entries(spec), columns)
    except OSError as error:
        raise SourceError(f"{spec} cannot be read: {error}", hint="choose data that can be read") from error
    if splits is not None:
        wanted = _select(splits, opened)
        opened = {split: source for split, source in opened.items() if split in wanted}
    return opened if limit is None else {split: Limited(source, limit) for split, source in opened.items()}


def location(spec: str | Sequence[str]) -> list[str]:
    """The spec in a form that finds the data from any working directory; built-in names stay as they are."""
    return [f"{split}={_absolute(text)}" if split else _absolute(text) for split, text in _entries(spec)]


def _entries(spec: str | Sequence[str]) -> list[_Entry]:
    texts = [spec] if isinstance(spec, str) else list(spec)
    entries = []
    for text in texts:
        named = None if _path(text).exists() else _NAMED.fullmatch(text)
        entries.append(_Entry(split_name(named[1]), named[2]) if named else _Entry(None, text))
    names = [entry.split for entry in entries]
    if not entries or "" in texts:
        raise SourceError("no data set is named", hint="give a name, a folder, a file or a pattern")
    if None in names and any(names):
        raise SourceError("some splits are named and some are not", hint="name each: train=A test=B")
    if any(names) and len(set(names)) < len(names):
        raise SourceError("a split is named twice", hint="give its files as one pattern: 'train=x-{000..146}.tar'")
    return entries


def _open_all(entries: list[_Entry], columns: Columns) -> dict[str, Source]:
    if entries[0].split is not None:
        found = {str(entry.split): _only(_find(entry.text), entry) for entry in entries}
    elif len(entries) == 1:
        found = _find(entries[0].text)
    else:  # a pattern that the shell has expanded
        found = dict(group_files(file for entry in entries for file in expand_pattern(entry.text)))
    opened: dict[str, Source] = {}
    class_names: tuple[str, ...] = ()
    for split, place in _in_order(found).items():
        opened[split] = _open(place, columns, class_names or None) if isinstance(place, Place) else place
        class_names = class_names or opened[split].class_names
    _check_agreement(opened)
    return opened


def _check_agreement(opened: Mapping[str, Source]) -> None:
    for facts in ("modality", "class_names"):
        known = {split: value for split, source in opened.items() if (value := getattr(source, facts))}
        if len(set(known.values())) > 1:
            listed = "; ".join(f"{split} has {reprlib.repr(value)}" for split, value in known.items())
            raise SourceError(f"the splits differ in {facts}: {listed}", hint="name splits of one data set")


def _open(place: Place, columns: Columns, class_names: Sequence[str] | None) -> Source:
    if place.kind == "image-folder":
        return ImageFolder(place.paths[0], class_names=class_names)
    if place.kind == "tar-shards":
        return TarShards(place.paths, class_names=class_names)
    return TextFiles(
        place.paths,
        text_column=columns.text,
        label_column=columns.label,
        id_column=columns.id,
        class_names=class_names,
    )


def _find(text: str) -> _Found:
    _refuse_remote(text)
    home = _in_data_home(text)
    if home and (found := find_layout(home)):
        return dict(found)
    if built_in := _BUILT_IN.fullmatch(text):
        return dict(_built_in(built_in))
    path = _path(text)
    found = group_files(expand_pattern(str(path))) if is_pattern(path) else find_layout(path)
    if not found:
        raise _nothing(text, path)
    return dict(found)


def _built_in(name: re.Match[str]) -> dict[str, Source]:
    if name[1]:
        return {"train": Digits("train"), "test": Digits("test")}
    count = int(name[3] or _SYNTHETIC_COUNT)
    make = SyntheticImages if name[2] == "synthetic" else SyntheticTexts
    return {"train": make(count), "test": make(max(1, count // 4), seed=1)}


def _only(found: _Found, entry: _Entry) -> "Place | Source":
    """What a named split is read from: all there is, or what has that name among several."""
    if len(found) > 1 and entry.split not in found:
        raise SourceError(f"{entry.text} holds several splits: {', '.join(found)}", hint="give the path of one of them")
    return found[str(entry.split)] if len(found) > 1 else next(iter(found.values()))


def _select(wanted: Sequence[str], opened: Mapping[str, Source]) -> set[str]:
    names = {split_name(name) for name in wanted}
    for name in sorted(names - set(opened)):
        raise SourceError(f"there is no split {name!r}", hint=f"there are: {', '.join(opened)}")
    return names


def _in_order(found: Mapping[str, Value]) -> dict[str, Value]:
    others = sorted(set(found) - set(_FIRST))
    return {split: found[split] for split in (*_FIRST, *others) if split in found}


def _path(text: str) -> Path:
    return Path(os.path.expanduser(text))


def _in_data_home(text: str) -> Path | None:
    home = os.environ.get("FC_DATA")
    return _path(home) / text if home and _NAME.fullmatch(text) else None


def _absolute(text: str) -> str:
    _refuse_remote(text)
    home = _in_data_home(text)
    if home and find_layout(home):
        return os.path.abspath(home)
    return text if _BUILT_IN.fullmatch(text) else os.path.abspath(_path(text))


def _refuse_remote(text: str) -> None:
    if remote := _REMOTE.match(text):
        what = "a command is never run for data" if remote[1] == "pipe" else "remote data is not supported yet"
        raise SourceError(f"{text!r} is refused: {what}", hint="download it, then give the local folder or files")
    if text.lower().endswith(".parquet"):
        raise SourceError(f"{text}: .parquet is not supported yet", hint="convert it to .jsonl")


def _nothing(text: str, path: Path) -> SourceError:
    if path.is_dir():
        return SourceError(f"no images, tars or texts in {text}", hint="is this the right folder, and is it complete?")
    home = os.environ.get("FC_DATA")
    known = {*_BUILT_IN_NAMES, *data_names(path.parent), *(data_names(_path(home)) if home else ())}
    near = difflib.get_close_matches(path.name, known, n=1)
    guess = f"did you mean {near[0]!r}? " if near else ""
    where = f"{home!r} now" if home else "not set now; it is the folder of your data sets"
    place = f"put the data at $FC_DATA/{text} (FC_DATA is {where}), or give a path" if _NAME.fullmatch(text) else ""
    hint = guess + (place or "check the path; names are looked up in $FC_DATA")
    return SourceError(f"no data set at {text!r}; built in are {', '.join(_BUILT_IN_NAMES)}", hint=hint)
