"""Data sets that the `datasets` library opens: from the Hugging Face hub, its cache, or a local folder."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from featurecache.errors import SourceError, UsageError

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa

__all__ = ["HubName", "HubTable", "open_tables", "parse_name"]

_NAME = re.compile(r"(?P<name>[^@:]+)(@(?P<revision>[^@:]+))?(:(?P<config>[^@:]+))?")
_MAX_IMAGE_BYTES = 2**30


class HubName(NamedTuple):
    """hf:NAME[@REVISION][:CONFIG]."""

    name: str
    """ORG/NAME on the hub, or a local folder's absolute path."""
    revision: str | None
    config: str | None

    @property
    def is_local(self) -> bool:
        """Whether it is a folder on disk."""
        return Path(self.name).is_absolute()

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"hf:{self.name}{revision}" + (f":{self.config}" if self.config else "")


def parse_name(text: str) -> HubName:
    """ "hf:org/name@main:config" -> its parts. Raises SourceError."""
    given = text.removeprefix("hf:")
    if given and Path(given).expanduser().is_dir():  # whatever stands in its name
        return HubName(str(Path(given).expanduser().resolve()), None, None)
    match = _NAME.fullmatch(given)
    if match is None:
        raise SourceError(f"{text!r} names no data set", hint="write hf:NAME, hf:ORG/NAME:CONFIG or hf:./FOLDER")
    name = match["name"]
    if name.startswith((".", "/", "~")) or Path(name).is_dir():
        if match["revision"]:
            raise SourceError(f"{text!r}: a local folder has no revisions", hint="write hf:./FOLDER")
        name = str(Path(name).expanduser().resolve())
    return HubName(name, match["revision"], match["config"])


def open_tables(name: HubName) -> "dict[str, HubTable]":
    """Every split, as the data set calls it. Never runs code of the data set, nor reads files that are not its own.

    Raises UsageError where the extra `hub` is not installed, and SourceError where the data set is not found, cannot
    be reached, is gated, needs a configuration, or names files elsewhere.
    """
    _need_datasets()
    import datasets

    try:
        with _quiet():
            builder = datasets.load_dataset_builder(name.name, name.config, revision=name.revision)
            _check_files(name, builder)
            builder.download_and_prepare()
            found = builder.as_dataset()
    except SourceError:
        raise
    except Exception as error:  # whatever its readers of thirty formats raise
        raise _explained(name, error) from error
    root = Path(name.name) if name.is_local else None
    return {split: HubTable(f"{name}, split {split}", part, root) for split, part in found.items()}


class HubTable:
    """One split, memory-mapped by the `datasets` library; nothing is decoded by it."""

    def __init__(self, name: str, dataset: "datasets.Dataset", root: Path | None) -> None:
        """`root` is the local folder that images may be read from, where there is one."""
        self.name, self._dataset, self._root = name, dataset, root
        self.schema: pa.Schema = dataset.features.arrow_schema
        self._columns: dict[str, datasets.Dataset] = {}

    def __len__(self) -> int:
        return len(self._dataset)

    def read(self, column: str, start: int, stop: int, *, field: str | None = None) -> "pa.ChunkedArray":
        """Rows [start, stop) of a column or of a field of it."""
        import pyarrow.compute as pc

        if column not in self._columns:
            self._columns[column] = self._dataset.select_columns(column).with_format("arrow")
        values = self._columns[column][start:stop].column(0)
        return values if field is None else pc.struct_field(values, field)

    def place(self, row: int) -> str:
        """The data set, its split, and the row counted from 1."""
        return f"row {row + 1} of {self.name}"

    def row_key(self, row: int) -> str:
        """ "row-3"."""
        return f"row-{row + 1}"

    def path_key(self, path: str) -> str:
        """The path relative to the local folder; the file's name for one that lies elsewhere on this machine."""
        if self._root is not None and Path(path).is_relative_to(self._root):
            return Path(path).relative_to(self._root).as_posix()
        return Path(path).name if Path(path).is_absolute() else path

    def read_file(self, path: str) -> bytes | None:
        """An image below the local folder, or below the library's own caches, and no other file of this machine."""
        if not _is_below(path, self._root):
            return None
        file = Path(path)
        try:
            return file.read_bytes() if file.stat().st_size <= _MAX_IMAGE_BYTES else None
        except OSError:
            return None


def _check_files(name: HubName, builder: "datasets.DatasetBuilder") -> None:
    """Raises SourceError where the data set's own notes (configs in README.md) lead to files that are not its own."""
    root = Path(name.name) if name.is_local else None
    own = f"hf://datasets/{builder.repo_id or name.name}@"
    for files in (builder.config.data_files or {}).values():
        for file in map(str, files):
            if not (_is_below(file, root) if "://" not in file else root is None and file.startswith(own)):
                hint = "remove it from the configs in the README.md of the data set, if you trust the rest"
                raise SourceError(f"{name} names a file that is not its own: {file}", hint=hint)


def _is_below(path: str, root: Path | None) -> bool:
    """Whether a file lies in the folder, or in a cache of the library (which is not where the user's token is)."""
    from datasets import config
    from huggingface_hub import constants

    file = Path(path).resolve()
    roots = [Path(config.HF_DATASETS_CACHE), Path(constants.HF_HUB_CACHE), *filter(None, [root])]
    return any(file.is_relative_to(folder.resolve()) for folder in roots)


def _need_datasets() -> None:
    try:
        import datasets  # noqa: F401
    except ImportError:
        hint = "pip install 'featurecache[hub]'"
        message = "hf: data sets need the package datasets, which is not installed"
        raise UsageError(message, hint=hint) from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Progress of downloads on a terminal, and nothing else from the library."""
    import datasets

    level, bars = datasets.logging.get_verbosity(), not datasets.are_progress_bars_disabled()
    datasets.logging.set_verbosity_error()
    if bars and not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.logging.set_verbosity(level)
        if bars:
            datasets.enable_progress_bars()


def _explained(name: HubName, error: Exception) -> SourceError:
    lines = str(error).strip().splitlines()
    reason = lines[0] if lines else type(error).__name__
    offline = "give a local folder (hf:./FOLDER), or a cache that was filled where there is a connection (HF_HOME)"
    if isinstance(error, ConnectionError) or "OfflineMode" in reason:
        return SourceError(f"{name} is not in the cache, and the hub cannot be reached: {reason}", hint=offline)
    if "is a gated dataset" in reason and not name.is_local:
        from huggingface_hub import constants

        page = f"{constants.ENDPOINT}/datasets/{name.name}"
        return SourceError(f"{name} is gated", hint=f"accept the terms at {page}, then log in with `hf auth login`")
    if isinstance(error, FileNotFoundError):
        hint = f"check the name; a private one needs `hf auth login`; without a connection, {offline}"
        return SourceError(f"{name} is not found: {reason}", hint=hint)
    if isinstance(error, ValueError) and "config" in reason.lower():
        return SourceError(f"{name}: {' '.join(lines)}", hint="name the configuration: hf:NAME:CONFIG")
    return SourceError(f"{name} cannot be opened: {reason}", hint="convert it to parquet files, and give their folder")
