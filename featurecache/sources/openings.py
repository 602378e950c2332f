"""Splits that were found and are not opened yet: what each one is read from, on disk or on the web."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias

from featurecache.errors import SourceError
from featurecache.sources.base import Source
from featurecache.sources.digits import Digits
from featurecache.sources.fetch import bare
from featurecache.sources.hub_datasets import HubName, open_tables
from featurecache.sources.hub_repository import IMAGENET, hub_tars
from featurecache.sources.image_folder import ImageFolder
from featurecache.sources.layout import Layout, Place, split_name, split_of_tar
from featurecache.sources.parquet_files import ParquetTable
from featurecache.sources.remote_tars import RemoteTars, are_listed, file_name
from featurecache.sources.synthetic import SyntheticImages, SyntheticTexts
from featurecache.sources.tabular import Table, Tabular
from featurecache.sources.tar_shards import TarShards
from featurecache.sources.text_files import TextFiles
from featurecache.sources.text_records import Columns

__all__ = ["Opening", "Openings", "digits", "from_hub", "from_layout", "from_urls", "imagenet", "synthetic"]


def _at_hand() -> bool:
    return False


@dataclass(frozen=True, slots=True)
class Opening:
    """One split, before it is opened."""

    open: Callable[[Columns, Sequence[str] | None], Source]
    """Takes the columns of tables and the class names, None for those of its own labels."""
    must_fetch: Callable[[], bool] = _at_hand
    """Whether data must come over the network before it can be opened."""


Openings: TypeAlias = dict[str, Opening]
"""From the name of each split to how it is opened."""


def from_layout(layout: Layout) -> Openings:
    """Folders and files on disk."""
    return {split: Opening(partial(_open_place, place)) for split, place in layout.items()}


def from_urls(urls: Iterable[str]) -> Openings:
    """Tars on the web, grouped by the split in their names. Raises SourceError for other files."""
    splits: dict[str, list[str]] = defaultdict(list)
    for url in dict.fromkeys(urls):
        split = split_of_tar(Path(file_name(url)))
        if split is None:
            hint = "fetch other files yourself, then give the local ones"
            raise SourceError(f"{bare(url)} is no .tar, and only those are read over http", hint=hint)
        splits[split].append(url)
    return {split: Opening(partial(_open_urls, found), partial(_unlisted, found)) for split, found in splits.items()}


def from_hub(name: HubName) -> Openings:
    """The splits of a data set of the `datasets` library. Raises SourceError, UsageError.

    "train.clean.100" is called train-clean-100, and a "dev" beside a "validation" val-2.
    """
    openings: Openings = {}
    for given, table in open_tables(name).items():
        plain = re.sub(r"[^a-z0-9_-]", "-", given.lower())
        split = split_name(plain if plain[:1].isalpha() else f"split-{plain}")
        while split in openings:  # "validation" and "dev" of one data set
            split += "-2"
        openings[split] = Opening(partial(_open_table, table))
    return openings


def imagenet(local: str) -> Openings:
    """ImageNet-1k as the hub has it. Raises SourceError; `local` says where a copy on disk would be found."""
    return from_urls(hub_tars(IMAGENET, local=local))


def digits() -> Openings:
    """scikit-learn's digits."""
    return {split: _made(partial(Digits, split)) for split in ("train", "test")}


def synthetic(name: str, count: int) -> Openings:
    """ "synthetic" or "synthetic-text", with a quarter as many samples to test on."""
    make = SyntheticImages if name == "synthetic" else SyntheticTexts
    return {"train": _made(partial(make, count)), "test": _made(partial(make, max(1, count // 4), seed=1))}


def _made(make: Callable[[], Source]) -> Opening:
    return Opening(lambda _columns, _names: make())


def _open_place(place: Place, columns: Columns, class_names: Sequence[str] | None) -> Source:
    if place.kind == "image-folder":
        return ImageFolder(place.paths[0], class_names=class_names)
    if place.kind == "tar-shards":
        return TarShards(place.paths, class_names=class_names)
    if place.kind == "parquet-files":
        return _open_table(ParquetTable(place.paths), columns, class_names)
    return TextFiles(
        place.paths,
        text_column=columns.text,
        label_column=columns.label,
        id_column=columns.id,
        class_names=class_names,
    )


def _open_urls(urls: Sequence[str], columns: Columns, class_names: Sequence[str] | None) -> Source:
    return RemoteTars(urls, class_names=class_names)


def _unlisted(urls: Sequence[str]) -> bool:
    return not are_listed(urls)


def _open_table(table: Table, columns: Columns, class_names: Sequence[str] | None) -> Source:
    return Tabular(table, columns=columns, class_names=class_names)
