"""The one loop that runs a teacher over a source and fills a cache."""

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from featurecache.background import BackgroundWriter, Rows
from featurecache.draw import stored_views
from featurecache.encodings import holds_values, make_encoding
from featurecache.errors import IdentityError
from featurecache.forward import Passes, forward_of, rows_at_once
from featurecache.frames import Frames
from featurecache.inputs import Input, TextInput
from featurecache.loader import Loaded, load
from featurecache.plan import SHARED_ARRAYS
from featurecache.rows import ListedContents
from featurecache.sources.base import Source
from featurecache.store.claims import Claims
from featurecache.store.layout import OFFSETS, PartSpec, Shard
from featurecache.store.objects import LocalObjects
from featurecache.store.views import StoredViews
from featurecache.store.writer import CacheWriter, find_part
from featurecache.teachers.base import Recorded, Teacher
from featurecache.types import Reason

__all__ = ["Encoded", "Progress", "assets_of", "extract"]

VIEWS_AT_ONCE = 8
"""Views of a sample that are made of one decoding."""

_WAIT_SECONDS = 1.0
"""Between looks at what another extraction of the same part is still doing."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Where an extraction is, after a batch."""

    done: int
    """Rows of the part, each view's counted, that have been through the teacher, also in earlier and other runs."""
    total: int
    invalid: Mapping[Reason, int]
    """Invalid rows that this run has written, by reason."""
    until_safe: int
    """Rows to go until nothing is lost by closing the generator: those that the open shard still lacks."""
    is_waiting: bool
    """Whether other extractions are at work on all that is left."""


def extract(
    teacher: Teacher | Recorded,
    source: Source,
    objects: LocalObjects,
    part: PartSpec,
    *,
    batch_size: int = 64,
    workers: int = 0,
    device: torch.device | str = "cpu",
) -> Iterator[Progress]:
    """Run the teacher over every row that is not committed yet, yielding at the start and after each batch; of one that
    is not at hand, what it said of them is looked up.

    Decoding runs ahead in worker processes, writing runs behind in a thread; memory does not grow with the rows.
    Several processes may extract one part at once: each takes shards that no other has. What was committed stays when
    the generator is closed or fails. Raises IdentityError if a part of this name was made from something else, if
    samples are prepared otherwise than when it was begun, or if the data changed while it was read; IncompleteError if
    the part's views are not drawn yet; CorruptCacheError for views that are not of this teacher's kind; DiskFullError.
    """
    part = find_part(objects, part.split, "teacher", part.identity) or part
    check_proof(part, teacher.input)
    contents = ListedContents(source, objects, part.split)
    views = stored_views(objects, part.split, stop=(part.views or (0, 1))[1])
    if views is not None and (part.views or (0, 1))[1] > 1:
        views.check_fits(teacher.input)
    writer = CacheWriter(objects, part, assets=assets_of(teacher.input))
    forward = forward_of(teacher, part, batch_size=batch_size, device=device)
    run = Encoded(forward, writer, views)
    loading: dict[str, Any] = {"workers": workers, "hash_inputs": True, "pin_memory": run.on_gpu}
    total = sum(shard.rows for shard in writer.part.shards())
    with Claims(objects, writer.part) as claims, BackgroundWriter(writer) as background:
        while True:
            left = _rows_left(writer)
            work = _Work(writer, claims, views, rows_at_once(source.modality, batch_size))
            waits = bool(left) and not work.found
            yield _progress(total - left, total, background.reasons, is_waiting=waits)
            if not left:
                return
            if waits:
                time.sleep(_WAIT_SECONDS)
                continue
            for batch in load(source, teacher.input, work, **loading):
                shards = work.shards_of(batch)
                contents.check(batch.rows, batch.content_hashes)  # a mix's partners are among them
                background.append(shards, run(batch, views=len(shards)))
                left -= len(batch.frames)
                yield _progress(total - left, total, background.reasons, until_safe=work.rows_lacking)
            background.drain()


class _Work:
    """Frames of shards that nobody has done or is doing: the same rows in several views, and none crosses a shard.

    The loader asks for batches ahead of those it gives back; which shards each belongs to is remembered here.
    """

    def __init__(self, writer: CacheWriter, claims: Claims, views: StoredViews | None, batch_frames: int) -> None:
        self._writer, self._claims, self._views, self._batch_frames = writer, claims, views, batch_frames
        self._groups = self._claimed()
        self._first = next(self._groups, None)
        self._asked: deque[tuple[Shard, ...]] = deque()
        self._full: deque[Shard] = deque()
        self.found = self._first is not None
        """Whether there is anything that this run can do now."""
        self.rows_lacking = 0
        """Rows that the shards which were begun still lack, in all views."""

    def __iter__(self) -> Iterator[Frames]:
        first = () if self._first is None else (self._first,)
        for shards in itertools.chain(first, self._groups):
            start, stop = shards[0].start, shards[0].stop
            step = max(self._batch_frames // len(shards), 1)
            for at in range(start, stop, step):
                self._asked.append(shards)
                yield self._frames(np.arange(at, min(at + step, stop)), [shard.view for shard in shards])

    def shards_of(self, batch: Loaded) -> tuple[Shard, ...]:
        """The shards, one of each view, of the next batch that the loader gives back."""
        shards = self._asked.popleft()
        rows = batch.frames.samples[: len(batch.frames) // len(shards)]  # those behind them are partners of a mix
        self.rows_lacking = (shards[0].stop - (int(rows[-1]) + 1)) * len(shards)
        if not self.rows_lacking:
            self._full.extend(shards)
        while self._full and self._writer.is_committed(self._full[0]):
            self._claims.release(self._full.popleft())
        self._claims.renew()
        return shards

    def _claimed(self) -> Iterator[tuple[Shard, ...]]:
        """Shards of the same rows, up to eight views at once, claimed as they are asked for."""
        for group in self._writer.pending_groups(VIEWS_AT_ONCE):
            if claimed := tuple(shard for shard in group if self._claims.take(shard)):
                yield claimed

    def _frames(self, rows: np.ndarray, views: list[int]) -> Frames:
        if self._views is None:
            return Frames.plain(rows)
        return self._views.frames(rows, np.tile(views, (len(rows), 1)))


class Encoded:
    """From a loaded batch to rows of every array of the part."""

    def __init__(self, forward: Passes, writer: CacheWriter, views: StoredViews | None = None) -> None:
        self._forward = forward
        self._augmentation = views.augmentation if views else None
        self._encodings = {
            out.output.name: make_encoding(out.encoding, out.output, scale=out.scale) for out in writer.part.outputs
        }
        own = [array for array in writer.part.arrays if array not in (*SHARED_ARRAYS, OFFSETS)]
        self._arrays = [array for array in own if not array.longest]
        self._ragged = [array for array in own if array.longest]
        self.on_gpu = forward.device.type == "cuda"

    def __call__(self, batch: Loaded, *, views: int = 1) -> Callable[[], list[Rows]]:
        """Start the forward passes. What is returned waits for them, and gives the rows of each view.

        The batch has `views` frames of each row, one after the other. With CUDA nothing here waits for the device, so
        the next batch can be started meanwhile.
        """
        passes = [
            (found.frames, found.lengths, self._encode(found.outputs))
            for found in self._forward.passes(batch, self._augmentation)
        ]
        computed = torch.cuda.Event() if self.on_gpu else None
        if computed:
            computed.record(torch.cuda.current_stream(self._forward.device))

        def rows() -> list[Rows]:
            if computed:
                computed.synchronize()
            return self._rows(batch, passes, views)

        return rows

    def _encode(self, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        encoded: dict[str, Tensor] = {}
        for name, encoding in self._encodings.items():
            encoded |= encoding.encode(outputs[name])
        # with CUDA into pinned memory, and the event above is waited for; other devices have nothing to wait with
        return {name: tensor.to("cpu", non_blocking=self.on_gpu) for name, tensor in encoded.items()}

    def _rows(self, batch: Loaded, passes: "list[_Pass]", views: int) -> list[Rows]:
        """For each view one row of each array for every row of the batch; fill values in those that are invalid."""
        asked = len(batch.frames)
        shows = batch.frames.shows[:asked]
        rows = {array.name: np.full((asked, *array.shape), array.fill, array.dtype) for array in self._arrays}
        tokens = {array.name: [np.empty((0, *array.shape), array.dtype)] * asked for array in self._ragged}
        reasons = batch.reasons[shows]
        is_given = np.zeros(asked, bool)
        for at, lengths, encoded in passes:
            arrays = {name: tensor.numpy() for name, tensor in encoded.items()}
            is_given[at] = True
            finite = self._finite(arrays, lengths)
            reasons[at[~finite]] = Reason.NOT_FINITE
            for name, found in rows.items():
                found[at[finite]] = arrays[name][finite]
            for name, each in tokens.items():
                for place in np.flatnonzero(finite):
                    each[at[place]] = arrays[name][place, : lengths[place]]
        reasons[(reasons == Reason.VALID) & ~is_given] = Reason.NO_OUTPUT
        valid = (reasons == Reason.VALID).astype(np.uint8)
        rows |= {"valid": valid, "reason": reasons, "input_hash": batch.input_hashes[shows]}
        # a batch in one view is not copied by this
        return [
            {name: np.ascontiguousarray(values[view::views]) for name, values in rows.items()}
            | _end_to_end({name: each[view::views] for name, each in tokens.items()})
            for view in range(views)
        ]

    def _finite(self, arrays: Mapping[str, np.ndarray], lengths: np.ndarray) -> np.ndarray:
        """bool (rows,): which can be kept; what stands at the padding does not count."""
        finite = np.ones(len(lengths), bool)
        if plain := {array.name: arrays[array.name] for array in self._arrays}:
            finite &= holds_values(plain)
        for array in self._ragged:
            is_real = np.arange(arrays[array.name].shape[1]) < lengths[:, None]
            finite &= (np.isfinite(arrays[array.name]).all(axis=2) | ~is_real).all(axis=1)
        return finite


_Pass: TypeAlias = tuple[np.ndarray, np.ndarray, dict[str, Tensor]]
"""Of one forward pass: which frames, int64 (rows,); how many tokens each has, int64 (rows,); the encoded outputs."""


def _end_to_end(tokens: Mapping[str, list[np.ndarray]]) -> dict[str, np.ndarray]:
    """The rows of ragged arrays, and where each of them is; nothing where there is no such array."""
    lengths = next((np.array(list(map(len, rows)), np.int64) for rows in tokens.values()), None)
    if lengths is None:
        return {}
    stops = lengths.cumsum()
    found = {name: np.concatenate(rows) for name, rows in tokens.items()}
    return {**found, OFFSETS.name: np.stack([stops - lengths, stops], axis=1)}


def _rows_left(writer: CacheWriter) -> int:
    return sum(shard.rows for shard in writer.pending())


def _progress(done: int, total: int, reasons: np.ndarray, *, until_safe: int = 0, is_waiting: bool = False) -> Progress:
    invalid = {reason: int(reasons[reason]) for reason in Reason if reason and reasons[reason]}
    return Progress(done, total, invalid, until_safe, is_waiting)


def check_proof(part: PartSpec, network_input: Input) -> None:
    """Raises IdentityError if a part was begun with another way to prepare samples: another Pillow, or tokenizers."""
    if part.facts.get("proof") not in (None, here := network_input.proof()):
        hint = "go on with the versions in its provenance, or choose another --out"
        fields = [("inputs", part.facts["proof"], here)]
        raise IdentityError(f"{part.prefix} was begun where samples are prepared otherwise:", fields=fields, hint=hint)


def assets_of(network_input: Input) -> dict[str, bytes]:
    """The data files of a part that a network with this input gives, by name."""
    return {"tokenizer.json": network_input.tokenizer_json.encode()} if isinstance(network_input, TextInput) else {}
