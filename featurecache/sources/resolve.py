"""From what a user types for a data set to its splits, each an opened source."""

import difflib
import os
import re
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from featurecache.errors import SourceError
from featurecache.sources.base import Source
from featurecache.sources.hub_datasets import parse_name
from featurecache.sources.layout import data_names, find_layout, group_files, split_name
from featurecache.sources.limited import Limited
from featurecache.sources.openings import (
    Opening,
    Openings,
    digits,
    from_hub,
    from_layout,
    from_urls,
    imagenet,
    synthetic,
)
from featurecache.sources.patterns import expand_pattern, expand_urls, is_pattern
from featurecache.sources.text_records import Columns

__all__ = ["is_remote", "location", "open_data"]

_BUILT_IN = re.compile(r"(digits)|(synthetic|synthetic-text)(?::(\d{1,9}))?")
_BUILT_IN_NAMES = ("digits", "synthetic", "synthetic-text")
_SYNTHETIC_COUNT = 1000
_SCHEME = re.compile(r"(pipe|hf):|([A-Za-z][A-Za-z0-9+.-]*)://")
_NAMED = re.compile(r"([^=/]+)=(.+)", re.DOTALL)
_NAME = re.compile(r"\w[\w.-]*")
_FIRST = ("train", "val", "test")

Value = TypeVar("Value")


class _Entry(NamedTuple):
    split: str | None
    text: str


def open_data(
    spec: str | Sequence[str],
    *,
    splits: Sequence[str] | None = None,
    text_column: str | None = None,
    label_column: str | None = None,
    id_column: str | None = None,
    image_column: str | None = None,
    limit: int | None = None,
) -> dict[str, Source]:
    """The splits of a data set: train, val and test first, others sorted; all count classes as the train split does.

    | spec                          | what it means                                                           |
    |-------------------------------|-------------------------------------------------------------------------|
    | "digits", "synthetic[:COUNT]" | built in, as is "synthetic-text[:COUNT]"                                |
    | "NAME"                        | `$FC_DATA/NAME` as a folder, or NAME.tar, NAME-train-000000.tar, ...    |
    | "FOLDER"                      | class folders; or train, val, test; or tars or texts named with a split |
    | "FILE", "FOLDER/STEM"         | a .tar, .parquet, .jsonl, .csv, .txt (.gz); or all files with that stem |
    | "x-{000..146}.tar", "*.jsonl" | a pattern, quoted from the shell                                        |
    | "https://host/x-{0..9}.tar"   | tars on the web, which are fetched one by one                           |
    | "hf:NAME[@REVISION][:CONFIG]" | a data set of the `datasets` library; hf:./FOLDER for a local one       |
    | "imagenet"                    | `$FC_DATA/imagenet`, else ImageNet-1k's tars from the hub               |
    | ["train=A", "test=B"]         | each of the above as one named split                                    |

    `splits` selects some, and nothing is fetched for the others; `limit` keeps the first samples of each. Columns that
    are not named are text, label and id; a table's image column is found by itself. Raises SourceError, whose hint says
    what to type; UsageError where a package or a folder for downloads is missing; DiskFullError.
    """
    columns = Columns(text=text_column, label=label_column, id=id_column, image=image_column)
    try:
        found = _in_order(_find_all(_entries(spec)))
        wanted = set(found) if splits is None else _select(splits, found)
        opened = _open_all(found, wanted, columns)
    except OSError as error:
        shown = spec if isinstance(spec, str) else " ".join(spec)
        raise SourceError(
            f"{shown.partition('?')[0]} cannot be read: {error}", hint="choose data that can be read"
        ) from error
    opened = {split: source for split, source in opened.items() if split in wanted}
    return opened if limit is None else {split: Limited(source, limit) for split, source in opened.items()}


def location(spec: str | Sequence[str]) -> list[str]:
    """The spec in a form that finds the data from any working directory; built-in names stay as they are."""
    return [f"{split}={_absolute(text)}" if split else _absolute(text) for split, text in _entries(spec)]


def is_remote(text: str) -> bool:
    """Whether a data set comes over the network, or is opened by a library that may go there. Raises SourceError."""
    (entry,) = _entries(text)
    return bool(_scheme(entry.text)) or _is_hub_imagenet(entry.text)


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


def _find_all(entries: list[_Entry]) -> Openings:
    if entries[0].split is not None:
        return {str(entry.split): _only(_find(entry.text), entry) for entry in entries}
    if len(entries) == 1:
        return _find(entries[0].text)
    if all(_is_url(entry.text) for entry in entries):
        return from_urls(url for entry in entries for url in expand_urls(entry.text))
    for entry in entries:
        if _scheme(entry.text):
            raise SourceError(
                f"{entry.text.partition('?')[0]} stands among other data", hint="name the splits: train=A test=B"
            )
    # a pattern that the shell has expanded
    return from_layout(group_files(file for entry in entries for file in expand_pattern(entry.text)))


def _open_all(found: Openings, wanted: set[str], columns: Columns) -> dict[str, Source]:
    """The wanted splits, and those that give them their class names: the first split that has some and is here.

    Raises SourceError where a split that must be fetched could give other numbers to the names of a wanted one.
    """
    opened: dict[str, Source] = {}
    class_names: tuple[str, ...] = ()
    absent = ""
    for split, opening in found.items():
        if wanted <= opened.keys():
            break
        if split not in wanted and (class_names or opening.must_fetch()):
            absent = absent or ("" if class_names else split)
            continue
        opened[split] = opening.open(columns, class_names or None)
        class_names = class_names or opened[split].class_names
        if absent and class_names != tuple(map(str, range(len(class_names)))):
            raise _uncounted(split, absent)
    _check_agreement(opened)
    return opened


def _uncounted(split: str, absent: str) -> SourceError:
    return SourceError(
        f"the labels of {split} are names, and {absent}, which gives them their numbers, was never fetched",
        hint=f"open {absent} too; or name {split} alone, {split}=ADDRESS, and its classes are counted by themselves",
    )


def _check_agreement(opened: Mapping[str, Source]) -> None:
    for facts in ("modality", "class_names"):
        known = {split: value for split, source in opened.items() if (value := getattr(source, facts))}
        if len(set(known.values())) > 1:
            listed = "; ".join(f"{split} has {reprlib.repr(value)}" for split, value in known.items())
            raise SourceError(f"the splits differ in {facts}: {listed}", hint="name splits of one data set")


def _find(text: str) -> Openings:
    if _scheme(text) == "hf":
        return from_hub(parse_name(text))
    if _scheme(text):
        return from_urls(expand_urls(text))
    home = _in_data_home(text)
    if home and (layout := find_layout(home)):
        return from_layout(layout)
    if built_in := _BUILT_IN.fullmatch(text):
        return digits() if built_in[1] else synthetic(built_in[2], int(built_in[3] or _SYNTHETIC_COUNT))
    path = _path(text)
    if _is_hub_imagenet(text):
        return imagenet("$FC_DATA/imagenet" if home else "$FC_DATA/imagenet (FC_DATA is not set now)")
    layout = group_files(expand_pattern(str(path))) if is_pattern(path) else find_layout(path)
    if not layout:
        raise _nothing(text, path)
    return from_layout(layout)


def _only(found: Openings, entry: _Entry) -> Opening:
    """What a named split is read from: all there is, or what has that name among several."""
    if len(found) > 1 and entry.split not in found:
        raise SourceError(f"{entry.text} holds several splits: {', '.join(found)}", hint="give the path of one of them")
    return found[str(entry.split)] if len(found) > 1 else next(iter(found.values()))


def _select(wanted: Sequence[str], found: Openings) -> set[str]:
    names = {split_name(name) for name in wanted}
    for name in sorted(names - set(found)):
        raise SourceError(f"there is no split {name!r}", hint=f"there are: {', '.join(found)}")
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
    scheme = _scheme(text)
    if scheme:
        # the query of an address may be a signature that opens it, and caches are shared
        return str(parse_name(text)) if scheme == "hf" else text.partition("?")[0]
    home = _in_data_home(text)
    if home and find_layout(home):
        return os.path.abspath(home)
    return text if _BUILT_IN.fullmatch(text) or _is_hub_imagenet(text) else os.path.abspath(_path(text))


def _is_hub_imagenet(text: str) -> bool:
    home = _in_data_home(text)
    return text == "imagenet" and not (home and find_layout(home)) and not _path(text).exists()


def _scheme(text: str) -> str:
    """ "hf", "http", "https", or "" for what is local. Raises SourceError for every other way to name data."""
    match = _SCHEME.match(text)
    if match is None:
        return ""
    scheme = (match[1] or match[2]).lower()
    if scheme == "pipe":
        raise SourceError(f"{text!r} is refused: a command is never run for data", hint="run it, then give its files")
    if scheme not in ("hf", "http", "https"):
        hint = "download it first, then give the local folder or files; tars are also read over https"
        raise SourceError(f"{text!r} is refused: data is not read over {scheme}:// yet", hint=hint)
    if scheme != "hf":
        expand_urls(text)  # refuses what is no address
    return scheme


def _is_url(text: str) -> bool:
    return _scheme(text) in ("http", "https")


def _nothing(text: str, path: Path) -> SourceError:
    if path.is_dir():
        return SourceError(f"no images, tars or texts in {text}", hint="is this the right folder, and is it complete?")
    home = os.environ.get("FC_DATA")
    known = {*_BUILT_IN_NAMES, *data_names(path.parent), *(data_names(_path(home)) if home else ())}
    near = difflib.get_close_matches(path.name, known, n=1)
    guess = f"did you mean {near[0]!r}? " if near else ""
    where = f"{home!r} now" if home else "not set now; it is the folder of your data sets"
    place = f"put the data at $FC_DATA/{text} (FC_DATA is {where}), or give a path" if _NAME.fullmatch(text) else ""
    other = "; hf:NAME opens a data set of the Hugging Face hub"
    hint = guess + (place + other if place else "check the path; names are looked up in $FC_DATA")
    return SourceError(f"no data set at {text!r}; built in are {', '.join(_BUILT_IN_NAMES)}", hint=hint)
