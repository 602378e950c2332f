"""What each of several teachers gave of the same samples: in parts of one cache, or in other caches by the same key."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from featurecache.augment import ImageAugmentation
from featurecache.errors import IdentityError, UnknownNameError, UsageError
from featurecache.store.reader import CacheReader
from featurecache.types import OutputSpec
from student.balance import Balance
from student.join import Elsewhere
from student.targets import Balanced, Ensemble, FromCache, Member, Targets, Together
from student.targets.ensemble import How

__all__ = [
    "Given",
    "check_same_samples",
    "check_same_views",
    "choose_teachers",
    "elsewhere",
    "ensemble_members",
    "find_teachers",
    "matching_rows",
    "targets_of",
]


@dataclass(frozen=True, slots=True)
class Given:
    """The outputs of one teacher."""

    teacher: str
    """Its name among those of a run, without dots; empty where there is one only."""
    reader: CacheReader
    outputs: Mapping[str, str]
    """An output's own name to the one under which the reader has it."""
    row_of: np.ndarray | None = None
    """int64 (rows of the first cache,): the reader's row with the same key, -1 for none; None for the first cache."""

    @property
    def specs(self) -> dict[str, OutputSpec]:
        """Every output by the name that a student knows it by."""
        return {self.known_as(name): self.reader.outputs[stored] for name, stored in self.outputs.items()}

    def known_as(self, output: str) -> str:
        """ "embedding", or "TEACHER/embedding" where there are several teachers."""
        return f"{self.teacher}/{output}" if self.teacher else output

    def stored(self, known: Sequence[str]) -> dict[str, str]:
        """Of outputs by known names, those that are this teacher's: known name to the reader's."""
        names = {self.known_as(output): stored for output, stored in self.outputs.items()}
        return {name: names[name] for name in known if name in names}


def find_teachers(readers: Sequence[CacheReader]) -> list[Given]:
    """Every teacher of every cache, those of the first cache first, under names of their own."""
    found: dict[str, Given] = {}
    for number, reader in enumerate(readers):
        row_of = matching_rows(readers[0], reader) if number else None
        for part, outputs in reader.by_teacher.items():
            name = base = part.replace(".", "_")  # a module of torch has no name with a dot
            count = 1
            while name in found:
                count += 1
                name = f"{base}-{count}"
            found[name] = Given(name, reader, outputs, row_of)
    return list(found.values())


def choose_teachers(found: Sequence[Given], wanted: Sequence[str] | None) -> list[Given]:
    """The teachers of these names, or "all"; None for the first one of each cache. One alone has no name.

    Raises UnknownNameError, and UsageError where none of them is of the first cache.
    """
    first = found[0].reader
    if wanted is None:
        readers = list(dict.fromkeys(map(_identity, found)))
        chosen = [next(given for given in found if _identity(given) == reader) for reader in readers]
    elif list(wanted) == ["all"]:
        chosen = list(found)
    else:
        named = {given.teacher: given for given in found}
        asked = [name.replace(".", "_") for name in wanted]
        for name in asked:
            if name not in named:
                raise UnknownNameError("teacher of these caches", name, named)
        chosen = [given for given in found if given.teacher in asked]
    if not any(given.reader is first for given in chosen):
        hint = "give the cache of those teachers first: --cache B --cache A"
        raise UsageError("the first cache, whose samples are shown, has none of the teachers", hint=hint)
    if len(chosen) == 1:
        return [Given("", chosen[0].reader, chosen[0].outputs)]
    return chosen


def matching_rows(first: CacheReader, other: CacheReader) -> np.ndarray:
    """int64 (rows of the first cache,): the row with the same key in another, -1 for none.

    Raises UsageError where they have other kinds of samples.
    """
    if first.modality != other.modality:
        raise UsageError(f"one cache is of {first.modality}s, another of {other.modality}s")
    return other.rows_of(first.keys)


def check_same_samples(given: Sequence[Given], outputs: Sequence[str]) -> None:
    """Raises IdentityError where samples of one key have other bytes in another cache, or other pixels for another
    teacher. Only rows where all these outputs, by known names, are valid are compared."""
    first = next(one for one in given if one.row_of is None)
    reference = list(first.stored(outputs).values()) or list(first.outputs.values())[:1]
    for one in given:
        names = list(one.stored(outputs).values())
        if not names:
            continue
        row_of = np.arange(len(first.reader)) if one.row_of is None else one.row_of
        rows = np.flatnonzero((row_of >= 0) & first.reader.valid(reference) & one.reader.valid(names)[row_of])
        there = row_of[rows]
        differs = first.reader.content_hashes[rows] != one.reader.content_hashes[there]
        what = "other bytes"
        if first.reader.modality == "image" and not differs.any():
            ours, theirs = first.reader.input_hashes(reference[0])[rows], one.reader.input_hashes(names[0])[there]
            differs, what = ours != theirs, "other pixels"
        if differs.any():
            key = first.reader.keys[int(rows[np.flatnonzero(differs)[0]])]
            message = f"teachers saw {what} of {differs.sum():,} samples of the same key, such as {key!r}"
            raise IdentityError(message, hint="extract with both teachers from the same data")


def check_same_views(given: Sequence[Given]) -> None:
    """Raises IdentityError unless views 1 and on are those of the first cache in all others, which is only sure where
    the same augmentation drew them with the same seed and, where it mixes samples, over the same rows."""
    first = next(one for one in given if one.row_of is None).reader
    for one in given:
        if one.row_of is None:
            continue
        ours, theirs = first.stored_views, one.reader.stored_views
        same = ours is not None and theirs is not None and ours.identity == theirs.identity
        if ours is not None and isinstance(ours.augmentation, ImageAugmentation) and ours.augmentation.mixes:
            same = same and np.array_equal(one.row_of, np.arange(len(one.reader)))
        if not same:
            message = f"the views of {one.teacher or 'one cache'} are not those of the first cache"
            hint = "train on the plain view with --views 1, or extract both with the same --augment and --seed"
            raise IdentityError(message, hint=hint)


def elsewhere(given: Sequence[Given], outputs: Sequence[str]) -> list[Elsewhere]:
    """What other caches than the first must have of a row, for outputs by known names."""
    found = []
    for one in given:
        names = list(one.stored(outputs).values())
        if one.row_of is not None and names:
            found.append(Elsewhere(one.reader, names, one.row_of))
    return found


def ensemble_members(given: Sequence[Given]) -> list[str]:
    """The logits of every teacher that has some, by known names.

    Raises UsageError unless there are several, dense, and of the same classes.
    """
    members = {one.known_as("logits"): one for one in given if "logits" in one.outputs}
    if len(members) < 2:
        raise UsageError("an ensemble needs the logits of two teachers", hint="choose more with --teachers or --cache")
    specs = {name: one.reader.outputs[one.outputs["logits"]] for name, one in members.items()}
    first = next(iter(specs))
    for name, spec in specs.items():
        if (spec.shape, spec.classes) != (specs[first].shape, specs[first].classes):
            raise UsageError(f"{first} and {name} are of other classes", hint="train with one head each: no --ensemble")
        one = members[name]
        if one.reader.is_sparse(one.outputs["logits"]):
            raise UsageError(
                f"{name} are sparse, and only dense logits can be averaged", hint="train without --ensemble"
            )
    return list(members)


def targets_of(
    given: Sequence[Given],
    outputs: Sequence[str],
    *,
    members: Sequence[str] = (),
    how: How | None = None,
    temperature: float = 1.0,
    balances: Mapping[str, Balance] | None = None,
) -> Targets:
    """The outputs of these known names; "logits" are those of the `members` together where they are an ensemble."""
    read = [*outputs, *(members if how and "logits" in outputs else ())]
    by_reader: dict[int, tuple[Given, dict[str, str]]] = {}
    for one in given:
        by_reader.setdefault(_identity(one), (one, {}))[1].update(one.stored(read))
    parts = [Member(FromCache(one.reader, names), one.row_of) for one, names in by_reader.values() if names]
    is_one = len(parts) == 1 and parts[0].row_of is None
    targets: Targets = parts[0].targets if is_one else Together(parts)
    if how and "logits" in outputs:
        targets = Ensemble(targets, tuple(members), how, temperature)
    return Balanced(targets, balances) if balances else targets


def _identity(given: Given) -> int:
    return id(given.reader)
