"""Records of what a teacher said, and the samples of every split that they are about: joined by key."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from featurecache.errors import UsageError
from featurecache.sources import Source
from pipelines.events import Message

if TYPE_CHECKING:
    from featurecache.records import Records

__all__ = ["JoinedRecords", "join_records"]

_SHOWN = 8
"""Names that a message lists."""


@dataclass(frozen=True, slots=True)
class JoinedRecords:
    """Which record is about which sample."""

    records: "Records"
    sources: Mapping[str, Source]
    """By split."""
    record_of: Mapping[str, np.ndarray]
    """int64 (samples,) of each split: the record of each sample, -1 where there is none."""
    unused: int
    """Records that are about no sample."""

    def told(self) -> Iterator[Message]:
        """What was found, and what was left out."""
        form = self.records.form
        classes = form.classes
        named = f"{classes.named_by}: {_listed(classes.names)}" if classes.names else "without names"
        yield Message(f"{len(self.records):,} records of {classes.size:,} {form.are}; the classes are {named}")
        if form.unread:
            yield Message(f"columns that are not read: {_listed(form.unread)}")
        if self.unused:
            yield Message(f"{self.unused:,} records are about no sample here, and are left out")
        for split, found in self.record_of.items():
            absent = np.flatnonzero(found < 0)
            if absent.size:
                such = repr(self.sources[split].keys[int(absent[0])])
                counted = f"{absent.size:,} of {found.size:,} samples of {split}"
                yield Message(f"{counted} have no record, such as {such}: their rows are invalid")


def join_records(records: "Records", sources: Mapping[str, Source]) -> JoinedRecords:
    """Find the record of every sample. Raises UsageError for a split without any, and where a key is two samples'."""
    record_of = {split: records.rows_of(split, source.keys) for split, source in sources.items()}
    for split, found in record_of.items():
        if not (found >= 0).any():
            there, here = repr(records.form.joined(split, sources[split].keys[0])), repr(records.keys[0])
            message = f"no record is about a sample of {split}: a key there is {there}, and one of the file is {here}"
            hint = "name the columns of keys with --key-column and --id-column, or the splits to import with --split"
            raise UsageError(message, hint=hint)
    sample_of = {split: _inverse(found, len(records)) for split, found in record_of.items()}
    for one, other in combinations(sources, 2):
        _check_same(records, {split: sources[split] for split in (one, other)}, sample_of)
    is_used = np.any([found >= 0 for found in sample_of.values()], axis=0)
    return JoinedRecords(records, sources, record_of, int((~is_used).sum()))


def _inverse(record_of: np.ndarray, records: int) -> np.ndarray:
    """int64 (records,): the sample of each record, -1 for none."""
    found = np.full(records, -1)
    samples = np.flatnonzero(record_of >= 0)
    found[record_of[samples]] = samples
    return found


def _check_same(records: "Records", sources: Mapping[str, Source], sample_of: Mapping[str, np.ndarray]) -> None:
    """Raises UsageError where a record is about a sample of each split, and these differ."""
    one, other = sources
    for record in np.flatnonzero((sample_of[one] >= 0) & (sample_of[other] >= 0)):
        here, there = (sources[split][int(sample_of[split][record])].encoded for split in (one, other))
        if here != there:
            message = f"{records.keys[int(record)]!r} is the key of a sample of {one} and of another one of {other}"
            raise UsageError(message, hint='say in a column "split" of the file which split each record is about')


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else "")
