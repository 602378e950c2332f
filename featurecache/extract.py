"""The one loop that runs a teacher over a source and fills a cache."""

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from featurecache.background import BackgroundWriter, Rows
from featurecache.encodings import holds_values, make_encoding
from featurecache.errors import IdentityError
from featurecache.forward import Forward, rows_at_once
from featurecache.inputs import TextInput
from featurecache.loader import Loaded, load
from featurecache.plan import SHARED_ARRAYS
from featurecache.rows import ListedContents
from featurecache.sources.base import Source
from featurecache.store.claims import Claims
from featurecache.store.layout import PartSpec, Shard
from featurecache.store.objects import LocalObjects
from featurecache.store.writer import CacheWriter, matching_part
from featurecache.teachers.base import Teacher
from featurecache.types import Reason

__all__ = ["Encoded", "Progress", "assets_of", "extract"]

_WAIT_SECONDS = 1.0
"""Between looks at what another extraction of the same part is still doing."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Where an extraction is, after a batch."""

    done: int
    """Rows of the part that have been through the teacher, those of earlier and other runs included."""
    total: int
    invalid: Mapping[Reason, int]
    """Invalid rows that this run has written, by reason."""
    until_safe: int
    """Rows to go until nothing is lost by closing the generator: those that the open shard still lacks."""
    is_waiting: bool
    """Whether other extractions are at work on all that is left."""


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
    Several processes may extract one part at once: each takes shards that no other has. What was committed stays when
    the generator is closed or fails. Raises IdentityError if the split already holds a part made from something else,
    or if the data changed while it was read, and DiskFullError.
    """
    part = matching_part(objects, part.split, "teacher", part.identity) or part
    contents = ListedContents(source, objects, part.split)
    writer = CacheWriter(objects, part, assets=assets_of(teacher))
    run = Encoded(Forward(teacher, batch_size=batch_size, device=device, precision=part.identity["precision"]), writer)
    loading: dict[str, Any] = {"workers": workers, "hash_inputs": True, "pin_memory": run.on_gpu}
    total = sum(shard.rows for shard in writer.part.shards())
    with Claims(objects, writer.part) as claims, BackgroundWriter(writer) as background:
        while True:
            left = _rows_left(writer)
            work = _Work(writer, claims, rows_at_once(source.modality, batch_size))
            waits = bool(left) and not work.found
            yield _progress(total - left, total, background.reasons, is_waiting=waits)
            if not left:
                return
            if waits:
                time.sleep(_WAIT_SECONDS)
                continue
            for batch in load(source, teacher.input, work, **loading):
                shard = work.shard_of(batch)
                _check_unchanged(batch, contents(batch.rows), source)
                background.append(shard, run(batch))
                left -= len(batch.rows)
                yield _progress(total - left, total, background.reasons, until_safe=work.rows_lacking)
            background.drain()


class _Work:
    """Batches of row numbers of shards that nobody has done or is doing; none crosses a shard.

    The loader asks for batches ahead of those it gives back; which shard each belongs to is remembered here.
    """

    def __init__(self, writer: CacheWriter, claims: Claims, batch_rows: int) -> None:
        self._writer, self._claims, self._batch_rows = writer, claims, batch_rows
        self._shards = (shard for shard in writer.pending() if claims.take(shard))
        self._first = next(self._shards, None)
        self._asked: deque[Shard] = deque()
        self._full: deque[Shard] = deque()
        self.found = self._first is not None
        """Whether there is anything that this run can do now."""
        self.rows_lacking = 0
        """Rows that the shard which was begun still lacks."""

    def __iter__(self) -> Iterator[np.ndarray]:
        first = () if self._first is None else (self._first,)
        for shard in itertools.chain(first, self._shards):
            for start in range(shard.start, shard.stop, self._batch_rows):
                self._asked.append(shard)
                yield np.arange(start, min(start + self._batch_rows, shard.stop))

    def shard_of(self, batch: Loaded) -> Shard:
        """The shard of the next batch that the loader gives back."""
        shard = self._asked.popleft()
        self.rows_lacking = shard.stop - (int(batch.rows[-1]) + 1)
        if not self.rows_lacking:
            self._full.append(shard)
        while self._full and self._writer.is_committed(self._full[0]):
            self._claims.release(self._full.popleft())
        self._claims.renew()
        return shard


class Encoded:
    """From a loaded batch to rows of every array of the part."""

    def __init__(self, forward: Forward, writer: CacheWriter) -> None:
        self._forward = forward
        self._encodings = {
            out.output.name: make_encoding(out.encoding, out.output, scale=out.scale) for out in writer.part.outputs
        }
        self._arrays = [array for array in writer.part.arrays if array not in SHARED_ARRAYS]
        self.on_gpu = forward.device.type == "cuda"

    def __call__(self, batch: Loaded) -> Callable[[], Rows]:
        """Start the forward passes. What is returned waits for them, and gives the rows.

        With CUDA nothing here waits for the device, so the next batch can be started meanwhile.
        """
        passes = [(chosen, self._encode(outputs)) for chosen, outputs in self._forward.outputs(batch.inputs)]
        finished = torch.cuda.Event() if self.on_gpu else None
        if finished:
            finished.record(torch.cuda.current_stream(self._forward.device))

        def rows() -> Rows:
            if finished:
                finished.synchronize()
            return self._rows(batch, passes)

        return rows

    def _encode(self, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        encoded: dict[str, Tensor] = {}
        for name, encoding in self._encodings.items():
            encoded |= encoding.encode(outputs[name])
        # with CUDA into pinned memory, and the event above is waited for; other devices have nothing to wait with
        return {name: tensor.to("cpu", non_blocking=self.on_gpu) for name, tensor in encoded.items()}

    def _rows(self, batch: Loaded, passes: list[tuple[np.ndarray, dict[str, Tensor]]]) -> Rows:
        """One row of each array for every row of the batch; the array's fill value in those that are invalid."""
        count = len(batch.rows)
        rows = {array.name: np.full((count, *array.shape), array.fill, array.dtype) for array in self._arrays}
        reasons = batch.reasons.copy()
        for chosen, encoded in passes:
            at = batch.valid[chosen]
            arrays = {name: tensor.numpy() for name, tensor in encoded.items()}
            finite = holds_values(arrays)
            reasons[at[~finite]] = Reason.NOT_FINITE
            for name, values in arrays.items():
                rows[name][at[finite]] = values[finite]
        valid = (reasons == Reason.VALID).astype(np.uint8)
        return {**rows, "valid": valid, "reason": reasons, "input_hash": batch.input_hashes}


def _rows_left(writer: CacheWriter) -> int:
    return sum(shard.rows for shard in writer.pending())


def _progress(done: int, total: int, reasons: np.ndarray, *, until_safe: int = 0, is_waiting: bool = False) -> Progress:
    invalid = {reason: int(reasons[reason]) for reason in Reason if reason and reasons[reason]}
    return Progress(done, total, invalid, until_safe, is_waiting)


def _check_unchanged(batch: Loaded, contents: np.ndarray, source: Source) -> None:
    changed = np.flatnonzero(batch.content_hashes != contents)
    if changed.size:
        key = source.keys[int(batch.rows[changed[0]])]
        hint = "the data set was changed since this cache was begun: start a new one with another --out"
        raise IdentityError(f"the bytes of sample {key!r} are not those the cache lists", hint=hint)


def assets_of(teacher: Teacher) -> dict[str, bytes]:
    """The data files of a teacher's part, by name."""
    network_input = teacher.input
    return {"tokenizer.json": network_input.tokenizer_json.encode()} if isinstance(network_input, TextInput) else {}
