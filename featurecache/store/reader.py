"""Reading a cache: rows by number, outputs by name, parts joined; only what was committed, and checked."""

import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from featurecache.errors import CorruptCacheError, IncompleteError, UnknownNameError, UsageError
from featurecache.fingerprint import key_hash
from featurecache.inputs import Input
from featurecache.store.commit import is_complete
from featurecache.store.layout import PartSpec
from featurecache.store.objects import LocalObjects
from featurecache.store.outputs import Output, find_outputs, group_by_teacher, open_column
from featurecache.store.part_reader import PartReader
from featurecache.store.parts import find_parts, read_asset, splits
from featurecache.store.seals import Seal, latest_seal
from featurecache.store.view_parts import ViewParts
from featurecache.store.views import StoredViews
from featurecache.store.writer import check_version
from featurecache.types import NO_LABEL, ArraySpec, Json, Modality, OutputSpec, SparseLogits

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from featurecache.store.gather import Column
    from featurecache.store.held import Held
    from featurecache.store.stored_inputs import StoredInputs

__all__ = ["Cache", "CacheReader", "open_cache"]


def open_cache(path: Path | str) -> "Cache":
    """Open a cache for reading. Raises UsageError if there is none, CorruptCacheError if it is damaged."""
    objects = LocalObjects(path)
    if not objects.exists("cache.json"):
        raise UsageError(f"there is no cache at {path}", hint="make one with `fc extract --out DIR`, or check the path")
    return Cache(objects, check_version(objects))


class Cache:
    """A cache as a whole: its splits, its parts and its seal."""

    def __init__(self, objects: LocalObjects, facts: Json) -> None:
        self.objects = objects
        self.source: Json = facts["source"]
        """Where the data came from: a hint."""
        self.uuid: str = facts["uuid"]

    @cached_property
    def seal(self) -> Seal | None:
        """The newest seal, or None while the first extraction is not finished."""
        return latest_seal(self.objects)

    @cached_property
    def splits(self) -> list[str]:
        """Names of the splits."""
        return splits(self.objects)

    def parts(self, split: str) -> list[PartSpec]:
        """Parts of a split; of a sealed cache, those that the seal covers. Raises CorruptCacheError if one is gone."""
        parts = {part.prefix: part for part in find_parts(self.objects, split)}
        if self.seal is None:
            return list(parts.values())
        sealed = [prefix for prefix in self.seal.parts if prefix.startswith(f"{split}/")]
        for prefix in sealed:
            if prefix not in parts:
                raise CorruptCacheError(f"{prefix} is sealed, but it is not in {self.objects.root}")
        return [parts[prefix] for prefix in sorted(sealed)]

    def origin(self, split: str) -> Json:
        """Where the samples of a split came from, a hint: what cache.json says, unless it was added from elsewhere."""
        parts = self.parts(split) if split in self.splits else []
        own = next((part.provenance.get("source") for part in parts if part.kind == "rows"), None)
        return own if isinstance(own, dict) else self.source

    def all_parts(self) -> list[PartSpec]:
        """Parts of all splits, complete or not, sealed or not."""
        return [part for split in self.splits for part in find_parts(self.objects, split)]

    def split(self, name: str = "train", *, trust: bool = False) -> "CacheReader":
        """A reader of one split. `trust` skips the checksums. Raises UnknownNameError, IncompleteError."""
        if name not in self.splits:
            raise UnknownNameError("split of this cache", name, self.splits)
        return CacheReader(self, name, trust=trust)

    def asset(self, part: PartSpec, name: str) -> bytes:
        """An asset of a part: data only, such as a tokenizer or a head."""
        return read_asset(self.objects, part, name)


class CacheReader:
    """Rows of one split, joined over its parts by row number. It never writes."""

    def __init__(self, cache: Cache, split: str, *, trust: bool = False) -> None:
        self.cache = cache
        self.split = split
        parts = {part.name: part for part in cache.parts(split)}
        rows = parts.pop("rows", None)
        if rows is None or rows.kind != "rows" or not is_complete(cache.objects, rows):
            hint = "run the same `fc extract` again to finish it"
            raise IncompleteError(f"the rows of split {split!r} are not all listed yet", hint=hint)
        self._rows = PartReader(cache.objects, rows, trust=trust)
        self.modality: Modality = rows.facts["modality"]
        self.class_names: tuple[str, ...] = tuple(rows.facts["class_names"])
        self.fingerprint: str = rows.identity["fingerprint"]
        for part in parts.values():
            if part.kind != "probe" and (part.rows, part.identity.get("data")) != (rows.rows, rows.identity):
                raise CorruptCacheError(f"{part.prefix} is over other rows than {rows.prefix}")
        teachers = {name: part for name, part in parts.items() if part.kind == "teacher"}
        self.teachers = {name: PartReader(cache.objects, part, trust=trust) for name, part in teachers.items()}
        probes = [part for name in cache.splits for part in cache.parts(name) if part.kind == "probe"]
        self._outputs = find_outputs(cache.objects, self.teachers.values(), probes)
        self._views = [PartReader(cache.objects, part, trust=trust) for part in parts.values() if part.kind == "views"]
        self._inputs = [
            PartReader(cache.objects, part, trust=trust) for part in parts.values() if part.kind == "inputs"
        ]
        self._opened: dict[str, Column] = {}

    def __len__(self) -> int:
        """Number of rows, valid or not."""
        return self._rows.part.rows

    @property
    def outputs(self) -> dict[str, OutputSpec]:
        """What `read` can give, by name."""
        return {name: output.spec for name, output in self._outputs.items()}

    @cached_property
    def labels(self) -> np.ndarray:
        """int64 (rows,): the class index of each row, NO_LABEL where it has none.

        Raises CorruptCacheError for a number that no class has.
        """
        labels = self._rows.whole("label").astype(np.int64)
        if labels.min() < NO_LABEL or labels.max() >= max(len(self.class_names), 1):
            found, prefix = len(self.class_names), self._rows.part.prefix
            raise CorruptCacheError(f"{prefix}/label has numbers beyond its {found:,} classes")
        return labels

    @cached_property
    def content_hashes(self) -> np.ndarray:
        """uint64 (rows,): `fingerprint.content_hash` of each sample's encoded bytes."""
        return self._rows.whole("content_hash")

    @cached_property
    def keys(self) -> list[str]:
        """The key of each row."""
        text = self._rows.elements("key_text", self._rows.whole("key_offsets"))
        try:
            return [key.tobytes().decode() for key in text]
        except UnicodeDecodeError as error:
            raise CorruptCacheError(f"a key of split {self.split!r} is not UTF-8: {error}") from None

    def made_by(self, output: str) -> str:
        """What gives an output, the same in every split: a teacher's id, or a probe's recipe_id."""
        part = self.output_part(output)
        return part.recipe_id if part.kind == "probe" else str(part.facts["teacher_id"])

    def named(self, output: str, made_by: str) -> str | None:
        """The name under which an output that was made by this can be read here, or None if it cannot."""
        names = [name for name in self._outputs if name.rpartition("/")[2] == output]
        return next((name for name in names if self.made_by(name) == made_by), None)

    def labelled(self, output: str) -> np.ndarray:
        """bool (rows,): rows of this split whose labels went into an output, which a probe's logits have."""
        found = self._find(output).part
        if found.part.kind != "probe" or found.part.split != self.split:
            return np.zeros(len(self), bool)
        return found.whole("labelled") == 1

    def rows_of(self, keys: Iterable[str]) -> np.ndarray:
        """int64: the row of each key, -1 where the cache does not have it."""
        return np.array([self._row_by_hash.get(key_hash(key), -1) for key in keys], np.int64)

    def valid(self, outputs: Sequence[str] | None = None, *, view: int = 0) -> np.ndarray:
        """bool (rows,): whether a row holds all of these outputs (default: every output there is) in a view."""
        valid = np.ones(len(self), bool)
        for source in self._sources(outputs):
            valid &= source.whole("valid", view=view) == 1
        return valid

    def views(self, outputs: Sequence[str] | None = None) -> int:
        """How many views, from 0 on, there are of all of these outputs (default: every output there is)."""
        return min((_first_gap(source.views) for source in self._sources(outputs)), default=1)

    @cached_property
    def stored_views(self) -> StoredViews | None:
        """The parameters of views 1 and on; None where every output is of view 0. Raises CorruptCacheError."""
        return StoredViews(self._views) if self._views else None

    def stored_inputs(self, network_input: Input | None = None) -> "StoredInputs | None":
        """The samples as they are kept in the cache itself, the largest that a network can be shown, or any.

        None where there are none such, or not all yet. Raises CorruptCacheError.
        """
        from featurecache.store.stored_inputs import StoredInputs

        complete = [part for part in self._inputs if is_complete(self.cache.objects, part.part)]
        found = [StoredInputs(part, self._rows) for part in complete]
        found = [inputs for inputs in found if network_input is None or inputs.accepts(network_input)]
        return max(found, key=lambda inputs: inputs.size, default=None)

    def input_hashes(self, output: str) -> np.ndarray:
        """uint64 (rows,): `fingerprint.hash_pixels` of what the teacher behind an output was shown of each sample."""
        return self._find(output).source.whole("input_hash", view=self._find(output).source.first_view)

    def reasons(self, output: str, *, view: int = 0) -> np.ndarray:
        """uint8 (rows,): the `Reason` of each row for one output."""
        return self._find(output).source.whole("reason", view=view)

    def read(
        self,
        rows: "np.ndarray | Sequence[int]",
        *,
        view: "int | np.ndarray" = 0,
        outputs: Sequence[str] | None = None,
        device: "torch.device | str" = "cpu",
    ) -> "dict[str, Tensor | SparseLogits]":
        """Outputs of some rows, decoded on a device: float32 (rows, *shape), or sparse logits; those of each token of
        texts (rows, longest of them, *shape), with zeros behind the tokens of each, of which `lengths` says the number.

        `view` is that of all rows, or int64 (rows,) for each of them. Invalid rows are NaN, or have no token; `valid`
        says which they are. Raises UnknownNameError for an output the cache does not hold, UsageError for a row number
        or a view that it does not have, IncompleteError for rows that are not committed yet, and CorruptCacheError for
        rows that are not what was committed.
        """
        from featurecache.store import gather

        return gather.read(self._columns(outputs), _row_numbers(rows), view=view, device=device)

    def gather(
        self,
        plan: "Iterable[np.ndarray | Sequence[int]]",
        *,
        views: "Iterable[np.ndarray] | None" = None,
        outputs: Sequence[str] | None = None,
        device: "torch.device | str" = "cpu",
    ) -> "Iterator[dict[str, Tensor | SparseLogits]]":
        """What `read` gives for each batch of rows of a plan, in order, read ahead into buffers that are used again.

        `views` has int64 (batch,) for each batch, which view of each row; view 0 by default. For many batches of much
        the same size. The plan is asked for a few batches more than were given out.
        """
        from featurecache.store import gather

        each: Iterable[int | np.ndarray] = itertools.repeat(0) if views is None else views
        return gather.gather(self._columns(outputs), zip(map(_row_numbers, plan), each, strict=False), device=device)

    def held(
        self,
        rows: np.ndarray,
        *,
        views: int = 1,
        outputs: Sequence[str] | None = None,
        device: "torch.device | str",
    ) -> "Held":
        """Outputs of these rows, int64, in their first views, read now and held on a device as they are encoded.

        Raises what `read` does, and UsageError for rows of different lengths.
        """
        import torch

        from featurecache.store.held import Held

        return Held(self._columns(outputs), _row_numbers(rows), views=views, device=torch.device(device))

    def is_even(self, outputs: Sequence[str] | None = None) -> bool:
        """Whether all rows of these outputs are of one length, as they must be to be held."""
        return not any(array.longest for _, array in self._arrays(outputs))

    def is_sparse(self, output: str) -> bool:
        """Whether an output is read as something else than a tensor of all its values."""
        import torch

        return not isinstance(self.read([], outputs=[output])[output], torch.Tensor)

    def will_need(
        self,
        rows: "np.ndarray | Sequence[int]",
        *,
        view: "int | np.ndarray" = 0,
        outputs: Sequence[str] | None = None,
    ) -> None:
        """Have the system begin to fetch these rows from the disk, and return at once."""
        index = _row_numbers(rows)
        for part, array in self._arrays(outputs):
            part.will_need(array, index, view=view)

    def stored_bytes(self, outputs: Sequence[str] | None = None) -> int:
        """Bytes of these outputs over all rows of one view, as they are kept."""
        return sum(part.stored_bytes(array) for part, array in self._arrays(outputs))

    def lengths(self, output: str, rows: "np.ndarray | Sequence[int]", *, view: "int | np.ndarray" = 0) -> np.ndarray:
        """int64 (rows,): how many tokens the teacher had of some rows, for an output of each token of texts."""
        return self._find(output).source.lengths(_row_numbers(rows), view=view)

    @property
    def by_teacher(self) -> dict[str, dict[str, str]]:
        """The outputs of each teacher: its part's name, the oldest first, to each output's own name and that in here.

        Logits of a probe are those of the teacher whose embedding it was fitted on, and go before that teacher's own.
        """
        return group_by_teacher(self._outputs)

    def teacher_part(self, output: str) -> PartSpec:
        """The teacher's part behind an output; behind head(embedding) it is the part of the embedding."""
        return self._find(output).source.part

    def parts_of(self, output: str) -> list[PartSpec]:
        """The teacher's parts that hold an output in different views; none for what a probe gives."""
        found = self._find(output)
        return [part.part for part in found.source.parts] if found.part.part.kind == "teacher" else []

    def output_part(self, output: str) -> PartSpec:
        """The part that gives an output: a teacher's, or a probe."""
        return self._find(output).part.part

    def temperatures(self, output: str) -> tuple[float, ...] | None:
        """Those at which sparse logits can be used; None for a dense output, which any will do for."""
        found: tuple[float, ...] | None = getattr(self._column(output).encoding, "temperatures", None)
        return found

    def classifier(self, output: str) -> "tuple[Tensor, Tensor] | None":
        """float32 weight (classes, dim) and bias (classes,) of the head that a probe put on an embedding; None for an
        output that a teacher gave."""
        return self._column(output).head

    @cached_property
    def _row_by_hash(self) -> Mapping[bytes, int]:
        return {row.tobytes(): number for number, row in enumerate(self._rows.whole("key_hash"))}

    def _find(self, name: str) -> Output:
        if name not in self._outputs:
            raise UnknownNameError(f"output in split {self.split!r} of this cache", name, self._outputs)
        return self._outputs[name]

    def _sources(self, outputs: Sequence[str] | None) -> "Collection[ViewParts]":
        """The teachers' parts behind outputs (default: every one there is), each once."""
        found = (self._find(name).source for name in (self._outputs if outputs is None else outputs))
        return {tuple(part.part.prefix for part in source.parts): source for source in found}.values()

    def _columns(self, outputs: Sequence[str] | None) -> "list[Column]":
        """How outputs (default: every one there is) are read."""
        return [self._column(name) for name in (self._outputs if outputs is None else outputs)]

    def _arrays(self, outputs: Sequence[str] | None) -> "Collection[tuple[ViewParts, ArraySpec]]":
        """The arrays behind outputs, each once."""
        return {key: found for column in self._columns(outputs) for key, found in column.arrays.items()}.values()

    def _column(self, name: str) -> "Column":
        if name not in self._opened:
            self._opened[name] = open_column(name, self._find(name), self.cache.objects)
        return self._opened[name]


def _first_gap(ranges: Sequence[range]) -> int:
    """The lowest view that there is not, of ranges in order."""
    stop = 0
    for views in ranges:
        stop = views.stop if views.start <= stop else stop
    return stop


def _row_numbers(rows: "np.ndarray | Sequence[int]") -> np.ndarray:
    """int64 (rows,). Raises UsageError for a mask or for fractions."""
    index = np.asarray(rows)
    if index.size and index.dtype.kind not in "iu":
        raise UsageError(f"rows are chosen by number, not by {index.dtype}", hint="np.flatnonzero makes a mask so")
    return index.astype(np.int64, copy=False)
