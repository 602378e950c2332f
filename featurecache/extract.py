"""The one loop that runs a teacher over a source and fills a cache."""

import contextlib
import math
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from featurecache.background import BackgroundWriter
from featurecache.encodings import Encoding, make_encoding
from featurecache.errors import IdentityError, UnknownNameError, UsageError
from featurecache.fingerprint import hash_json
from featurecache.inputs import Inputs, TextInput
from featurecache.loader import Loaded, load
from featurecache.rows import listed_contents, rows_identity
from featurecache.sources.base import Source
from featurecache.store.layout import FORMAT, REASON, VALID, EncodedOutput, PartSpec, Shard
from featurecache.store.objects import LocalObjects
from featurecache.store.writer import CacheWriter, matching_part
from featurecache.teachers.base import Teacher
from featurecache.types import ArraySpec, Json, Reason

__all__ = ["PRECISIONS", "Progress", "extract", "plan_part"]

PRECISIONS: dict[str, torch.dtype | None] = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""What the teacher computes in; other than float32 means autocast."""

_INPUT_HASH = ArraySpec("input_hash", "uint64")
_SHARED_ARRAYS = (VALID, REASON, _INPUT_HASH)


@dataclass(frozen=True, slots=True)
class Progress:
    """Where an extraction is, after a batch."""

    done: int
    """Rows of the part that have been through the teacher, those of earlier runs included."""
    total: int
    invalid: Mapping[Reason, int]
    """Invalid rows of this run, by reason."""


def plan_part(
    teacher: Teacher,
    source: Source,
    split: str,
    *,
    outputs: Sequence[str] | None = None,
    encode: Mapping[str, str] | None = None,
    temperatures: Sequence[float] = (1.0, 2.0, 4.0),
    precision: str = "float32",
) -> PartSpec:
    """The part that this teacher's outputs over this source will be. Raises UsageError for what does not fit."""
    if teacher.input.modality != source.modality:
        raise UsageError(f"{teacher.name} takes {teacher.input.modality}s, and the data are {source.modality}s")
    if precision not in PRECISIONS:
        raise UnknownNameError("precision", precision, PRECISIONS)
    encodings = _encodings(teacher, outputs, encode or {}, temperatures)
    chosen = {output.name: output for output in teacher.outputs if output.name in encodings}
    what = {"teacher": teacher.identity(), "input": teacher.input.to_json(), "precision": precision}
    return PartSpec(
        name=_part_name(teacher.name),
        kind="teacher",
        split=split,
        rows=len(source),
        views=(0, 1),
        identity={
            "format": FORMAT,
            "kind": "teacher",
            "data": rows_identity(source),
            **what,
            "encodings": {name: encoding.spec for name, encoding in encodings.items()},
            "views": {"program": "none", "first": 0, "count": 1},
        },
        arrays=(*(array for encoding in encodings.values() for array in encoding.arrays), *_SHARED_ARRAYS),
        outputs=tuple(EncodedOutput(chosen[name], encoding.spec) for name, encoding in encodings.items()),
        facts={"teacher": teacher.name, "teacher_id": hash_json(what), "input": teacher.input.to_json()},
        provenance=_provenance(),
    )


def extract(
    teacher: Teacher,
    source: Source,
    objects: LocalObjects,
    part: PartSpec,
    *,
    batch_size: int = 64,
    workers: int = 0,
    device: torch.device | str = "cpu",
) -> Iterator[Progress]:
    """Run the teacher over every row that is not committed yet, yielding at the start and after each batch.

    Decoding runs ahead in worker processes, writing runs behind in a thread; memory does not grow with the rows.
    What was committed stays when the generator is closed or fails. Raises IdentityError if the split already holds a
    part made from something else, or if the data changed while it was read, and DiskFullError.
    """
    part = matching_part(objects, part.split, "teacher", part.identity) or part
    contents = listed_contents(source, objects, part.split)
    writer = CacheWriter(objects, part, assets=_assets(teacher))
    batches = _Plan(writer, batch_size * (8 if source.modality == "text" else 1))
    encodings = {item.output.name: make_encoding(item.encoding, item.output) for item in part.outputs}
    run = _Forward(teacher.to(device), encodings, part, batch_size, torch.device(device))
    cuda = torch.device(device).type == "cuda"
    total = part.rows * (part.views[1] - part.views[0] if part.views else 1)
    done, invalid = total - batches.rows, dict.fromkeys(Reason, 0)
    loaded = load(source, teacher.input, batches, workers=workers, hash_inputs=True, pin_memory=cuda)
    yield Progress(done, total, {})
    with BackgroundWriter(writer) as background:
        for batch, shard in zip(loaded, batches.shards(), strict=False):
            _check_unchanged(batch, contents, source)
            rows = run(batch)
            background.append(shard, rows)
            done += len(batch.rows)
            for reason in rows["reason"][rows["reason"] > 0]:
                invalid[Reason(reason)] += 1
            yield Progress(done, total, {reason: count for reason, count in invalid.items() if count})


class _Plan:
    """The batches of row numbers still to do; none crosses a shard. Iterating twice gives the same."""

    def __init__(self, writer: CacheWriter, batch_rows: int) -> None:
        self._shards = list(writer.pending())
        self._batch_rows = batch_rows
        self.rows = sum(shard.rows for shard in self._shards)

    def __iter__(self) -> Iterator[np.ndarray]:
        return (rows for rows, _ in self._steps())

    def shards(self) -> Iterator[Shard]:
        """The shard of each batch."""
        return (shard for _, shard in self._steps())

    def _steps(self) -> Iterator[tuple[np.ndarray, Shard]]:
        for shard in self._shards:
            for start in range(shard.start, shard.stop, self._batch_rows):
                yield np.arange(start, min(start + self._batch_rows, shard.stop)), shard


class _Forward:
    """From a loaded batch to rows of every array of the part."""

    def __init__(
        self,
        teacher: Teacher,
        encodings: Mapping[str, Encoding],
        part: PartSpec,
        batch_size: int,
        device: torch.device,
    ) -> None:
        self._teacher, self._encodings, self._batch_size, self._device = teacher, encodings, batch_size, device
        self._arrays = [array for array in part.arrays if array not in _SHARED_ARRAYS]
        self._autocast = PRECISIONS[part.identity["precision"]]

    def __call__(self, batch: Loaded) -> dict[str, np.ndarray]:
        """One row of each array for every row of the batch; NaN and 0 in those that are invalid."""
        count = len(batch.rows)
        rows = {
            array.name: np.full((count, *array.shape), np.nan if "float" in array.dtype else 0, array.dtype)
            for array in self._arrays
        }
        reasons = batch.reasons.copy()
        for chosen, encoded in self._forward(batch.inputs) if batch.inputs else ():
            at = batch.valid[chosen]
            floats = [values.reshape(len(at), -1) for values in encoded.values() if values.dtype.kind == "f"]
            finite = np.isfinite(np.concatenate(floats, axis=1)).all(1)
            reasons[at[~finite]] = Reason.NOT_FINITE
            for name, values in encoded.items():
                rows[name][at[finite]] = values[finite]
        valid = (reasons == Reason.VALID).astype(np.uint8)
        return {**rows, "valid": valid, "reason": reasons, "input_hash": batch.input_hashes}

    def _forward(self, inputs: Inputs) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
        with torch.inference_mode():
            for chosen, part in _by_length(inputs, self._batch_size):
                moved = {name: tensor.to(self._device, non_blocking=True) for name, tensor in part.items()}
                with self._precision():
                    outputs = self._teacher(moved)
                encoded: dict[str, Tensor] = {}
                for name, encoding in self._encodings.items():
                    encoded |= encoding.encode(outputs[name])
                yield chosen, {name: tensor.cpu().numpy() for name, tensor in encoded.items()}

    def _precision(self) -> contextlib.AbstractContextManager[Any]:
        if self._autocast is None:
            return contextlib.nullcontext()
        return torch.autocast(self._device.type, self._autocast)


def _by_length(inputs: Inputs, batch_size: int) -> Iterator[tuple[np.ndarray, Inputs]]:
    """Batches for the network; texts of like length together, so that little is spent on padding."""
    if "mask" not in inputs:
        for start in range(0, len(inputs["images"]), batch_size):
            chosen = np.arange(start, min(start + batch_size, len(inputs["images"])))
            yield chosen, {"images": inputs["images"][start : start + batch_size]}
        return
    lengths = inputs["mask"].sum(1).numpy()
    order = np.argsort(lengths, kind="stable")
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        longest = int(lengths[chosen].max())
        yield chosen, {name: tensor[chosen, :longest] for name, tensor in inputs.items()}


def _check_unchanged(batch: Loaded, contents: np.ndarray, source: Source) -> None:
    changed = np.flatnonzero(batch.content_hashes != contents[batch.rows])
    if changed.size:
        key = source.keys[int(batch.rows[changed[0]])]
        hint = "the data set was changed since this cache was begun: start a new one with another --out"
        raise IdentityError(f"the bytes of sample {key!r} are not those the cache lists", hint=hint)


def _encodings(
    teacher: Teacher, outputs: Sequence[str] | None, encode: Mapping[str, str], temperatures: Sequence[float]
) -> dict[str, Encoding]:
    known = {output.name: output for output in teacher.outputs}
    for name in [*(outputs or ()), *encode]:
        if name not in known:
            raise UnknownNameError(f"output of {teacher.name}", name, known)
    chosen = list(dict.fromkeys(outputs or known))
    if unused := set(encode) - set(chosen):
        raise UsageError(f"--encode names {', '.join(sorted(unused))}, which --outputs leaves out")
    for name, spec in encode.items():
        if spec.partition(":")[0] == "topk" and name != "logits":
            hint = f"write --encode {name}=float16 or {name}=float32"
            raise UsageError(f"{spec} keeps the largest classes of logits; every number of {name} counts", hint=hint)
    if not all(0 < temperature < math.inf for temperature in temperatures):
        raise UsageError("temperatures must be positive numbers", hint="for example --temperatures 1,2,4")
    return {name: make_encoding(encode.get(name, "float16"), known[name], temperatures=temperatures) for name in chosen}


def _part_name(teacher: str) -> str:
    """A teacher's name as the name of a part."""
    name = re.sub(r"[^a-z0-9_.-]+", "-", teacher.lower())
    name = re.sub(r"\.{2,}", ".", name)[:56].strip(".-_")
    taken = ("rows", "inputs", "views", "probe", "assets", "seals", "c", "zarr.json", "cache.json", "part.json")
    return name if re.match(r"[a-z]", name) and name not in taken else f"teacher-{name}"


def _assets(teacher: Teacher) -> dict[str, bytes]:
    network_input = teacher.input
    return {"tokenizer.json": network_input.tokenizer_json.encode()} if isinstance(network_input, TextInput) else {}


def _provenance() -> Json:
    import importlib.metadata

    packages = ("featurecache", "torch", "timm", "transformers", "pillow", "numpy")
    versions = {name: importlib.metadata.version(name) for name in packages}
    return {"created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "packages": versions}
