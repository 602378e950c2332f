"""What is in webdataset tars, from their headers alone: members that share a name up to its first dot are a sample."""

import itertools
import tarfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeAlias

import numpy as np

from featurecache.errors import SourceError
from featurecache.fingerprint import hash_rows
from featurecache.sources.listing import LabelColumn, check_keys
from featurecache.sources.packed import Keys, Packer, narrow
from featurecache.types import Modality

__all__ = ["ABSENT", "TarRows", "TarSample", "collect_rows", "list_tar"]

_KINDS = {"jpg": "image", "jpeg": "image", "png": "image", "webp": "image", "txt": "text", "cls": "label"}
_MAX_LABEL_BYTES = 1024
ABSENT = -1
"""The offset of a sample that lacks its image or text."""
_DAMAGE = (tarfile.TarError, OSError, ValueError, OverflowError, EOFError, RecursionError)
"""What tarfile raises for damaged or hostile headers."""

Span: TypeAlias = tuple[int, int]
"""Offset and size in bytes."""


class TarSample(NamedTuple):
    """One sample of a tar: where its members are, and what its label says."""

    key: str
    """webdataset's `__key__`."""
    image: Span | None
    text: Span | None
    label: str | None


class _Member(NamedTuple):
    key: str
    extension: str
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class TarRows:
    """The samples of several tars, in order: what a source of tars lists when it is opened."""

    modality: Modality
    class_names: tuple[str, ...]
    keys: Keys
    labels: np.ndarray
    """int64 (samples,)."""
    starts: np.ndarray
    """The first row of each tar."""
    offsets: np.ndarray
    sizes: np.ndarray

    def find(self, row: int) -> tuple[int, int, int]:
        """Number of the tar, and the offset (or ABSENT) and size of the sample's bytes in it."""
        tar = int(np.searchsorted(self.starts, row, side="right")) - 1
        return tar, int(self.offsets[row]), int(self.sizes[row])

    def fingerprint(self) -> str:
        """Hash of every (key, member size)."""
        return hash_rows(self.keys, map(int, self.sizes))


def collect_rows(
    names: Sequence[str],
    places: Sequence[str],
    listings: Iterable[Iterable[TarSample]],
    *,
    class_names: Sequence[str] | None,
) -> TarRows:
    """Join the listings of tars called `names`; `places` name them in errors.

    The first sample that has an image or a text decides the modality. Raises SourceError where there is none, for
    duplicate keys, and for labels outside `class_names`.
    """
    modality: Modality | None = None
    keys, labels = Packer(), LabelColumn()
    starts, offsets, sizes = array("q"), array("q"), array("q")
    for name, listing in zip(names, listings, strict=True):
        starts.append(len(offsets))
        for sample in listing:
            if modality is None and (sample.image or sample.text):
                modality = "image" if sample.image else "text"
            offset, size = (sample.image if modality == "image" else sample.text) or (ABSENT, 0)
            keys.append(f"{name.removesuffix('.tar')}/{sample.key}".encode(errors="surrogatepass"))
            labels.append(sample.label)
            offsets.append(offset)
            sizes.append(size)
    if modality is None:
        raise _no_content(places)
    first_rows = np.array(starts)

    def place(row: int) -> str:
        return f"row {row} ({places[int(np.searchsorted(first_rows, row, side='right')) - 1]})"

    packed = Keys(keys.pack())
    check_keys(packed, place, hint="members of a sample must stand next to each other, tar names must differ")
    indices, found = labels.indices(class_names, place, untyped=True)
    narrowed = (narrow(np.frombuffer(column, np.int64)) for column in (offsets, sizes))
    return TarRows(modality, found, packed, indices, first_rows, *narrowed)


def list_tar(path: Path, place: str) -> Iterator[TarSample]:
    """The samples of a local tar in order; `place` is what errors call it.

    Raises SourceError for a tar that is truncated, damaged or compressed, for two members of one kind in a sample, and
    for a label that is no short text.
    """
    with _damage_told(place), path.open("rb") as stream:
        for key, group in itertools.groupby(_members(path), key=lambda member: member.key):
            members: dict[str, _Member] = {}
            for member in group:
                kind = _KINDS.get(member.extension.lower())
                if kind in members:
                    pair = f"{members[kind].extension} and {member.extension}"
                    raise SourceError(
                        f"sample {key!r} of {place} has two members for its {kind}: {pair}",
                        hint="a sample's key ends at the first dot of its name; give each sample a name of its own",
                    )
                if kind:
                    members[kind] = member
            image, text = (_span(members.get(kind)) for kind in ("image", "text"))
            yield TarSample(key, image, text, _label(stream, members.get("label"), place))


def _no_content(places: Sequence[str]) -> SourceError:
    return SourceError(
        f"no image or text in {', '.join(places[:3]) or 'no tar at all'}",
        hint=f"members that end in .{' .'.join(_KINDS)} are used, and the first dot of a name ends its key",
    )


@contextmanager
def _damage_told(place: str) -> Iterator[None]:
    try:
        yield
    except _DAMAGE as error:
        hint = "copy or build it again; a compressed tar must be unpacked to .tar"
        raise SourceError(f"{place} is no whole tar: {error}", hint=hint) from error


def _span(member: _Member | None) -> Span | None:
    return (member.offset, member.size) if member else None


def _label(stream: BinaryIO, member: _Member | None, place: str) -> str | None:
    if member is None:
        return None
    where = f"{place}, member {member.key}.{member.extension}"
    if member.size > _MAX_LABEL_BYTES:
        raise SourceError(f"{where} is too long for a label: {member.size:,} bytes")
    stream.seek(member.offset)
    try:
        return stream.read(member.size).decode().strip() or None
    except UnicodeDecodeError:
        raise SourceError(f"{where} is not UTF-8", hint="a .cls holds a class index or a class name") from None


def _members(path: Path) -> Iterator[_Member]:
    """The regular members that webdataset would name, in order. Raises what `_DAMAGE` lists unless the tar is whole."""
    with tarfile.open(path, "r:") as tar:
        while (member := tar.next()) is not None:
            if member.size < 0:
                raise tarfile.ReadError("a member of negative size")
            tar.members.clear()  # type: ignore[attr-defined]  # a shard may have millions, and tarfile keeps each
            name = _split(member.name)
            if name and member.isreg() and not member.issparse():
                yield _Member(*name, member.offset_data, member.size)
        with path.open("rb") as stream:  # tarfile takes a cut at a member's edge, or a bad header, for the end
            stream.seek(tar.offset)
            if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError("it does not end as a tar does")


def _split(name: str) -> tuple[str, str] | None:
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return (f"{folder}{slash}{stem}", extension) if stem and extension else None
