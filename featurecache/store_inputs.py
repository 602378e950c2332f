"""The part "inputs" of a split: its samples decoded once for all, as whole frames of one size or as token ids."""

import functools
import itertools
from collections.abc import Callable, Collection, Iterator

import numpy as np

from featurecache.errors import UsageError
from featurecache.extract import check_proof
from featurecache.inputs import ImageInput, Input, TextInput
from featurecache.loader import Loaded, load
from featurecache.rows import IMAGE_SIZE, ListedContents, rows_identity
from featurecache.sources.base import Source
from featurecache.store.claims import Claims
from featurecache.store.described import LARGEST_SIZE, LONGEST_TEXT
from featurecache.store.layout import FORMAT, REASON, VALID, PartSpec, Shard
from featurecache.store.objects import LocalObjects
from featurecache.store.part_reader import PartReader
from featurecache.store.parts import find_parts
from featurecache.store.stored_inputs import StoredInputs
from featurecache.store.writer import CacheWriter, find_part
from featurecache.types import ArraySpec, Dtype, Json, Reason

__all__ = ["plan_inputs", "store_inputs", "stored_tokens"]

_BATCH_ROWS = 256
_BATCH_BYTES = 2**24


def plan_inputs(
    source: Source, split: str, network_input: Input, size: int | None = None, *, taken: Collection[str] = ()
) -> PartSpec:
    """The part that will hold the inputs of a source: images as whole frames of size x size pixels, texts as the ids
    that `network_input` makes of them.

    It is called "inputs", or "inputs-2" and so on where that name is taken. Raises UsageError for what does not fit.
    """
    if network_input.modality != source.modality:
        raise UsageError(f"the network takes {network_input.modality}s, and the data are {source.modality}s")
    what = _described(network_input, size)
    names = itertools.chain(["inputs"], (f"inputs-{number}" for number in itertools.count(2)))
    return PartSpec(
        name=next(name for name in names if name not in taken),
        kind="inputs",
        split=split,
        rows=len(source),
        identity={"format": FORMAT, "kind": "inputs", "data": rows_identity(source), "input": what},
        arrays=(*_arrays(network_input, what), VALID, REASON, ArraySpec("input_hash", "uint64")),
        facts={"input": what, "proof": _proving(network_input, what).proof()},
    )


def store_inputs(
    source: Source, objects: LocalObjects, part: PartSpec, network_input: Input, *, workers: int = 0
) -> Iterator[Shard]:
    """Write a part that `plan_inputs` planned, yielding each shard that it commits; the rows are listed before.

    Several processes may do so at once, and what was committed stays when one is stopped. Raises IdentityError if the
    data were changed since they were listed, or if the part was begun with another Pillow or tokenizers.
    """
    part = find_part(objects, part.split, "inputs", part.identity) or part
    contents = ListedContents(source, objects, part.split)
    if source.modality == "image":
        _check_sizes_are_known(objects, part.split)
    check_proof(part, _proving(network_input, part.identity["input"]))
    writer = CacheWriter(objects, part, assets=_assets(network_input))
    shown = network_input if isinstance(network_input, TextInput) else _whole(part.identity["input"]["size"])
    opened: _OpenShard | None = None
    with Claims(objects, writer.part) as claims:
        work = _Work(writer, claims)
        try:
            for batch in load(source, shown, work, workers=workers, hash_inputs=True):
                contents.check(batch.rows, batch.content_hashes)
                opened = opened or _OpenShard(writer, int(batch.rows[0]))
                opened.append(batch)
                claims.renew()
                if opened.is_full:
                    shard, opened = opened.commit(), None
                    work.release(shard)
                    yield shard
        finally:
            if opened:
                opened.discard()


def stored_tokens(
    objects: LocalObjects, part: PartSpec, network_input: Input
) -> Callable[[np.ndarray], list[np.ndarray]]:
    """What gives the ids of rows, int64 (rows,), from a part of texts that is complete: for `draw_views`."""
    found = find_part(objects, part.split, "inputs", part.identity)
    rows = next(other for other in find_parts(objects, part.split) if other.kind == "rows")
    assert found is not None and isinstance(network_input, TextInput)
    stored = StoredInputs(PartReader(objects, found), PartReader(objects, rows))
    return functools.partial(stored.tokens, below=network_input.vocabulary_size)


class _Work:
    """Batches of rows of the shards that are left, none of them across two."""

    def __init__(self, writer: CacheWriter, claims: Claims) -> None:
        self._writer, self._claims = writer, claims
        self._mine: set[Shard] = set()

    def __iter__(self) -> Iterator[np.ndarray]:
        """int64 (rows,) each; the loader asks for them ahead of what is written."""
        widest = max(array.row_bytes for array in self._writer.part.arrays)
        step = max(min(_BATCH_ROWS, _BATCH_BYTES // widest), 1)
        for shard in self._shards():
            for at in range(shard.start, shard.stop, step):
                yield np.arange(at, min(at + step, shard.stop))

    def release(self, shard: Shard) -> None:
        """The shard is done."""
        if shard in self._mine:
            self._mine.remove(shard)
            self._claims.release(shard)

    def _shards(self) -> Iterator[Shard]:
        """Those that no other run is at work on, then those that are still not done: a little twice, but no waiting."""
        for shard in self._writer.pending():
            if self._claims.take(shard):
                self._mine.add(shard)
                yield shard
        yield from (shard for shard in self._writer.pending() if shard not in self._mine)


class _OpenShard:
    """One shard in the making, from loaded batches."""

    def __init__(self, writer: CacheWriter, row: int) -> None:
        """The one that begins with this row."""
        self._part = writer.part
        self.shard = self._part.shard(0, row // self._part.rows_per_shard)
        self.is_full = False
        self._file = writer.open(self.shard)
        self._element = self.shard.start * max(array.longest for array in self._part.arrays)

    def append(self, batch: Loaded) -> None:
        """Add the next rows: zeros, or no tokens, where a sample is bad."""
        valid = batch.reasons == Reason.VALID
        own = self._images(batch) if self._part.identity["input"]["kind"] == "image" else self._tokens(batch)
        shared = {"valid": valid.astype(np.uint8), "reason": batch.reasons, "input_hash": batch.input_hashes}
        self._file.append({**own, **shared})
        self.is_full = int(batch.rows[-1]) + 1 == self.shard.stop

    def commit(self) -> Shard:
        """Make it durable and say so."""
        self._file.commit()
        return self.shard

    def discard(self) -> None:
        """Give it up."""
        self._file.discard()

    def _images(self, batch: Loaded) -> dict[str, np.ndarray]:
        images = np.zeros((len(batch.rows), *self._part.array("image").shape), np.uint8)
        if batch.valid.size:
            images[batch.valid] = batch.inputs["images"].numpy().transpose(0, 2, 3, 1)
        return {"image": images}

    def _tokens(self, batch: Loaded) -> dict[str, np.ndarray]:
        lengths = np.zeros(len(batch.rows), np.int64)
        tokens = np.zeros(0, np.int64)
        if batch.valid.size:
            lengths[batch.valid] = batch.inputs["mask"].sum(1).numpy()
            tokens = batch.inputs["ids"][batch.inputs["mask"]].numpy()
        stops = self._element + lengths.cumsum()
        self._element = int(stops[-1])
        return {
            "tokens": tokens.astype(self._part.array("tokens").dtype),
            "offsets": np.stack([stops - lengths, stops], axis=1),
        }


def _described(network_input: Input, size: int | None) -> Json:
    """What is kept of each sample. Raises UsageError."""
    if isinstance(network_input, TextInput):
        if size is not None:
            raise UsageError("texts are kept as tokens and have no size in pixels", hint="leave out the size")
        if network_input.max_length > LONGEST_TEXT:
            hint = f"choose a --max-length of {LONGEST_TEXT:,} at most"
            raise UsageError(f"texts cannot be kept at {network_input.max_length:,} tokens", hint=hint)
        return network_input.to_json()
    if size is None or not 1 <= size <= LARGEST_SIZE:
        raise UsageError(f"images cannot be kept at {size} pixels a side", hint=f"choose 1 to {LARGEST_SIZE:,}")
    return {"kind": "image", "size": size, "interpolation": "bicubic"}


def _arrays(network_input: Input, what: Json) -> tuple[ArraySpec, ...]:
    if isinstance(network_input, TextInput):
        dtype: Dtype = "uint16" if network_input.vocabulary_size <= 2**16 else "int32"
        return ArraySpec("tokens", dtype, longest=network_input.max_length), ArraySpec(
            "offsets", "int64", (2,), ("bound",)
        )
    return (ArraySpec("image", "uint8", (what["size"], what["size"], 3), ("y", "x", "channel")),)


def _proving(network_input: Input, what: Json) -> Input:
    """The input whose proof tells whether samples are still made in the same way."""
    return network_input if isinstance(network_input, TextInput) else _whole(what["size"])


def _whole(size: int) -> ImageInput:
    """The whole frame, resized to size x size whatever its own ratio, so that every relative box is valid on it."""
    return ImageInput(size=size, crop_pct=1.0, crop_mode="squash", interpolation="bicubic")


def _assets(network_input: Input) -> dict[str, bytes]:
    """The data files of the part, by name."""
    return {"tokenizer.json": network_input.tokenizer_json.encode()} if isinstance(network_input, TextInput) else {}


def _check_sizes_are_known(objects: LocalObjects, split: str) -> None:
    """Raises UsageError unless the plain view of an image could be told from its frame."""
    rows = next(part for part in find_parts(objects, split) if part.kind == "rows")
    if IMAGE_SIZE not in rows.arrays:
        hint = "extract into a new cache with another --out"
        raise UsageError(f"{rows.prefix} does not know how large its images are", hint=hint)
