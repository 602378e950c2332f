"""Reading a cache: rows by number, outputs by name, parts joined; only what was committed, checked when first touched."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from featurecache.encodings import make_encoding
from featurecache.errors import IncompleteError, UnknownNameError, UsageError
from featurecache.fingerprint import key_hash
from featurecache.store.commit import Seal, find_parts, is_complete, latest_seal, splits
from featurecache.store.layout import EncodedOutput, PartSpec
from featurecache.store.objects import LocalObjects
from featurecache.store.part_reader import PartReader
from featurecache.store.writer import check_version
from featurecache.types import Json, Modality, OutputSpec, SparseLogits

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Cache", "CacheReader", "open_cache"]

MAX_ASSET_BYTES = 2**30


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
        self.source: Json = facts.get("source") or {}
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
        """Parts of a split; of a sealed cache, those that the seal covers."""
        parts = find_parts(self.objects, split)
        return [part for part in parts if part.prefix in self.seal.parts] if self.seal else parts

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
        return self.objects.get(f"{part.prefix}/assets/{name}", limit=MAX_ASSET_BYTES)


@dataclass(frozen=True, slots=True)
class _Output:
    part: "PartReader"
    encoded: EncodedOutput


class CacheReader:
    """Rows of one split, joined over its parts by row number. It never writes."""

    def __init__(self, cache: Cache, split: str, *, trust: bool = False) -> None:
        self.cache = cache
        self.split = split
        parts = {part.name: part for part in cache.parts(split)}
        rows = parts.pop("rows", None)
        if rows is None or not is_complete(cache.objects, rows):
            hint = "run the same `fc extract` again to finish it"
            raise IncompleteError(f"the rows of split {split!r} are not all listed yet", hint=hint)
        self._rows = PartReader(cache.objects, rows, trust=trust)
        self.modality: Modality = rows.facts["modality"]
        self.class_names: tuple[str, ...] = tuple(rows.facts["class_names"])
        self.fingerprint: str = rows.identity["fingerprint"]
        teachers = {name: part for name, part in parts.items() if part.kind == "teacher"}
        self.teachers = {name: PartReader(cache.objects, part, trust=trust) for name, part in teachers.items()}
        self._outputs = self._find_outputs()

    def __len__(self) -> int:
        """Number of rows, valid or not."""
        return self._rows.part.rows

    @property
    def outputs(self) -> dict[str, OutputSpec]:
        """What `read` can give, by name."""
        return {name: output.encoded.output for name, output in self._outputs.items()}

    @cached_property
    def labels(self) -> np.ndarray:
        """int64 (rows,): the class index of each row, NO_LABEL where it has none."""
        return self._rows.whole("label").astype(np.int64)

    @cached_property
    def content_hashes(self) -> np.ndarray:
        """uint64 (rows,): `fingerprint.content_hash` of each sample's encoded bytes."""
        return self._rows.whole("content_hash")

    @cached_property
    def keys(self) -> list[str]:
        """The key of each row."""
        text = self._rows.elements("key_text", self._rows.whole("key_offsets"))
        return [key.tobytes().decode() for key in text]

    def rows_of(self, keys: Iterable[str]) -> np.ndarray:
        """int64: the row of each key, -1 where the cache does not have it."""
        return np.array([self._row_by_hash.get(key_hash(key), -1) for key in keys], np.int64)

    def valid(self, outputs: Sequence[str] | None = None, *, view: int = 0) -> np.ndarray:
        """bool (rows,): whether a row holds all of these outputs (default: every output there is)."""
        parts = {id(part): part for name in outputs or self._outputs for part in self._sources(name)}
        return np.logical_and.reduce([part.whole("valid", view=view) == 1 for part in parts.values()])

    def reasons(self, output: str, *, view: int = 0) -> np.ndarray:
        """uint8 (rows,): the `Reason` of each row for one output."""
        return self._sources(output)[0].whole("reason", view=view)

    def read(
        self, rows: "np.ndarray | Sequence[int]", *, view: int = 0, outputs: Sequence[str] | None = None
    ) -> "dict[str, Tensor | SparseLogits]":
        """Outputs of some rows, decoded: float32 (rows, *shape), or sparse logits.

        Invalid rows are NaN; `valid` says which they are. Raises UnknownNameError for an output the cache does not
        hold, UsageError for a row number it does not have, IncompleteError for rows that are not committed yet, and
        CorruptCacheError for rows that are not what was committed.
        """
        index = np.asarray(rows, np.int64)
        return {name: self._read(name, index, view) for name in (self._outputs if outputs is None else outputs)}

    def teacher_part(self, output: str) -> PartSpec:
        """The teacher's part behind an output; behind head(embedding) it is the part of the embedding."""
        return self._sources(output)[0].part

    def output_part(self, output: str) -> PartSpec:
        """The part that gives an output: a teacher's, or a probe."""
        return self._find(output).part.part

    @cached_property
    def _row_by_hash(self) -> Mapping[bytes, int]:
        return {row.tobytes(): number for number, row in enumerate(self._rows.whole("key_hash"))}

    def _find_outputs(self) -> dict[str, _Output]:
        """Teachers first, probes after: a probe's logits take the plain name, the teacher's stay "part/logits"."""
        found: dict[str, _Output] = {}
        probes = [PartReader(self.cache.objects, part) for part in self._probes()]
        for part in [*self.teachers.values(), *probes]:
            for encoded in part.part.outputs:
                name = encoded.output.name
                if name in found:
                    older = found[name]
                    found[f"{older.part.part.name}/{name}"] = older
                found[name] = _Output(part, encoded)
        return found

    def _probes(self) -> list[PartSpec]:
        """Probes of any split that were fitted on the teacher this split holds, oldest first."""
        teachers = {part.part.facts["teacher_id"] for part in self.teachers.values()}
        parts = [part for split in self.cache.splits for part in self.cache.parts(split) if part.kind == "probe"]
        fitting = [part for part in parts if part.facts["teacher_id"] in teachers]
        return sorted(fitting, key=lambda part: (part.facts["order"], part.name))

    def _find(self, name: str) -> _Output:
        if name not in self._outputs:
            raise UnknownNameError(f"output in split {self.split!r} of this cache", name, self._outputs)
        return self._outputs[name]

    def _sources(self, name: str) -> list["PartReader"]:
        """The teacher parts whose arrays an output is read from."""
        output = self._find(name)
        if output.part.part.kind == "teacher":
            return [output.part]
        wanted = output.part.part.facts["teacher_id"]
        return [part for part in self.teachers.values() if part.part.facts["teacher_id"] == wanted]

    def _read(self, name: str, rows: np.ndarray, view: int) -> "Tensor | SparseLogits":
        output = self._find(name)
        if output.part.part.kind == "probe":
            return self._apply_head(output.part.part, rows, view)
        return _decode(output.part, output.encoded, rows, view)

    def _apply_head(self, probe: PartSpec, rows: np.ndarray, view: int) -> "Tensor":
        """head(embedding): the probe's linear layer on the cached embedding, float32 (rows, classes)."""
        import torch

        weight, bias = self._head(probe)
        wanted = probe.facts["teacher_id"]
        part = next(part for part in self.teachers.values() if part.part.facts["teacher_id"] == wanted)
        encoded = next(item for item in part.part.outputs if item.output.name == probe.facts["input"])
        features = _decode(part, encoded, rows, view)
        assert isinstance(features, torch.Tensor)
        return torch.addmm(bias, features, weight.T)

    def _head(self, probe: PartSpec) -> "tuple[Tensor, Tensor]":
        import safetensors.torch

        if probe.prefix not in self._heads:
            tensors = safetensors.torch.load(self.cache.asset(probe, "head.safetensors"))
            self._heads[probe.prefix] = tensors["weight"].float(), tensors["bias"].float()
        return self._heads[probe.prefix]

    @cached_property
    def _heads(self) -> "dict[str, tuple[Tensor, Tensor]]":
        return {}


def _decode(part: PartReader, encoded: EncodedOutput, rows: np.ndarray, view: int) -> "Tensor | SparseLogits":
    import torch

    encoding = make_encoding(encoded.encoding, encoded.output)
    return encoding.decode({a.name: torch.from_numpy(part.take(a, rows, view=view)) for a in encoding.arrays})
