"""What a split's samples look like, read from the cache itself: whole frames, or token ids, instead of a data set."""

import copy
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import NoReturn, Protocol, runtime_checkable

import numpy as np
import torch

from featurecache.augment.resample import resample, resample_batch
from featurecache.errors import BadSampleError, CorruptCacheError, SourceError, UsageError
from featurecache.frames import Frames
from featurecache.inputs import ImageInput, Input, Inputs, Prepared, TextInput
from featurecache.loader import Loaded
from featurecache.store.described import SIZE, described_inputs
from featurecache.store.layout import REASON, VALID
from featurecache.store.part_reader import PartReader
from featurecache.transfer import sent
from featurecache.types import ArraySpec, Json, Modality, Reason, Sample

__all__ = ["Listed", "ListedSource", "StoredInputs"]

_BYTES_AT_ONCE = 2**30
"""Of frames as float64, which a device holds while they are resized together."""
_CHUNK_BYTES = 2**26
"""Of frames on their way to the device that holds them."""


class StoredInputs:
    """The samples of a split as networks can be shown them: what `load` gives needs no data set and no tokenizer."""

    def __init__(self, part: PartReader, rows: PartReader) -> None:
        """A part of kind "inputs" and the split's part "rows", which knows how large the images were.

        Raises CorruptCacheError for a part that does not hold what it says.
        """
        self.part = part
        self.modality, self.size = described_inputs(part.part, rows.part)
        """The size is pixels a side of the frames, or tokens of the longest text."""
        self.input: Json = part.part.facts["input"]
        """{"kind": "image", "size": ...} or {"kind": "text", "tokenizer_sha256": ..., "max_length": ...}."""
        self._rows = rows
        self._held: tuple[torch.Tensor, np.ndarray] | None = None
        """Frames on a device, and the place of each row of the split among them, -1 for none."""

    def held_on(self, device: torch.device, rows: np.ndarray) -> "StoredInputs":
        """The same, with the frames of these rows, int64, each once, read now and held on a device; others still come
        from the files. Texts come from the files as they are: a batch of them is a few kilobytes."""
        if self.modality != "image" or not rows.size:
            return self
        frames = torch.empty((rows.size, *self._image.shape), dtype=torch.uint8, device=device)
        step = max(_CHUNK_BYTES // self._image.row_bytes, 1)
        for start in range(0, rows.size, step):
            taken = self.part.take(self._image, rows[start : start + step])
            frames[start : start + len(taken)].copy_(torch.from_numpy(taken))
        place = np.full(self.part.part.rows, -1)
        place[rows] = np.arange(rows.size)
        held = copy.copy(self)
        held._held = frames, place
        return held

    @property
    def is_held(self) -> bool:
        """Whether frames are held on a device."""
        return self._held is not None

    @property
    def stored_bytes(self) -> int:
        """Bytes of all frames, or of all texts if each were the longest."""
        return self.part.part.rows * sum(array.row_bytes for array in self.part.part.arrays)

    def accepts(self, network_input: Input) -> bool:
        """Whether a network that takes in this can be shown what is kept here: images always; texts as the same tokens,
        and no more of them."""
        if isinstance(network_input, TextInput) and self.modality == "text":
            same = network_input.to_json()["tokenizer_sha256"] == self.input["tokenizer_sha256"]
            return same and network_input.max_length <= self.size
        return isinstance(network_input, ImageInput) and self.modality == "image"

    def load(
        self, plan: Iterable[Frames], network_input: Input, *, device: torch.device | str = "cpu"
    ) -> Iterator[Loaded]:
        """What `loader.load` gives for a source whose samples are the rows, with the inputs on a device; no hashes.

        Images are resized twice, so they are like those of the data set and not the same; texts are the same. Raises
        UsageError for a network that these inputs do not serve, CorruptCacheError for what was never stored.
        """
        if not self.accepts(network_input):
            raise UsageError(f"{self.part.part.prefix} holds other inputs than the network takes", hint="give --data")
        device = torch.device(device)
        limit = network_input.vocabulary_size if isinstance(network_input, TextInput) else 0
        for frames in plan:
            reasons = self.reasons(frames.samples)
            if isinstance(network_input, TextInput):
                ids = self.tokens(frames.samples, below=limit)
                inputs = _moved(_texts(frames, reasons, ids, network_input), device)
            else:
                assert isinstance(network_input, ImageInput)
                inputs = self._images(frames, reasons, network_input, device)
            nothing = np.zeros(len(frames.samples), np.uint64)
            yield Loaded(frames, reasons, nothing, nothing.copy(), inputs)

    def reasons(self, rows: np.ndarray) -> np.ndarray:
        """uint8 (rows,): the `Reason` of each row, int64. Raises CorruptCacheError for one that there is not."""
        reasons, valid = self.part.take(REASON, rows), self.part.take(VALID, rows)
        if (reasons > max(Reason)).any() or ((reasons == Reason.VALID) != (valid == 1)).any():
            raise CorruptCacheError(
                f"{self.part.part.prefix} says of some rows neither that nor why not they are there"
            )
        return reasons

    def input_hashes(self) -> np.ndarray:
        """uint64 (rows of the split,): `fingerprint.hash_pixels` of what these inputs were made of."""
        return self.part.whole("input_hash")

    def tokens(self, rows: np.ndarray, *, below: int) -> list[np.ndarray]:
        """int64 (tokens,) for each of these rows, int64: its ids; none of bad samples.

        Raises CorruptCacheError for an id that is not `below` the tokenizer's `vocabulary_size`.
        """
        offsets = self.part.take(self.part.part.array("offsets"), rows)
        found = [ids.astype(np.int64) for ids in self.part.elements("tokens", offsets)]
        every = np.concatenate(found) if found else np.zeros(0, np.int64)
        if every.size and not 0 <= every.min() <= every.max() < below:
            raise CorruptCacheError(f"{self.part.part.prefix} holds tokens that its tokenizer does not have")
        return found

    def lengths(self, rows: np.ndarray) -> np.ndarray:
        """int64 (rows,): how many tokens the texts of these rows, int64, have."""
        return self.part.lengths(rows)

    def will_need(self, rows: np.ndarray) -> None:
        """Have the system begin to read the frames of these rows (int64, all there are)."""
        if self.modality == "image":
            self.part.will_need(self.part.part.array("image"), rows)

    def _images(self, frames: Frames, reasons: np.ndarray, network_input: ImageInput, device: torch.device) -> Inputs:
        """Frames on the device; where the plain view of a sample cannot be, the reason is set."""
        boxes = self._boxes(frames, reasons, network_input)
        valid = _valid_frames(frames, reasons)
        if not valid.size:
            return {}
        resized = self._resized_together if device.type == "cuda" else self._resized_one_by_one
        return resized(frames.samples, frames.shows[valid], boxes[valid], network_input, device)

    def _boxes(self, frames: Frames, reasons: np.ndarray, network_input: ImageInput) -> np.ndarray:
        """float64 (frames, 4): what each frame shows, relative to the whole; NaN for bad samples.

        A sample whose plain view cannot be is bad in every view, as where it is read from the data set.
        """
        boxes = np.full((frames.shows.size, 4), np.nan)
        boxes[:, : frames.parameters.shape[1]] = frames.parameters[:, :4]
        valid = np.flatnonzero(reasons == Reason.VALID)
        plain = np.full((len(reasons), 4), np.nan)
        sizes = self._sizes(frames.samples[valid])
        for sample, (height, width) in zip(valid.tolist(), sizes.tolist(), strict=True):
            try:
                plain[sample] = network_input.plain_box(height, width)
            except BadSampleError as error:
                reasons[sample] = error.reason
        return np.where(np.isnan(boxes[:, :1]), plain[frames.shows], boxes)

    def _sizes(self, rows: np.ndarray) -> np.ndarray:
        """int32 (rows, 2): height and width of valid images. Raises CorruptCacheError where they have none."""
        sizes = self._rows.take(SIZE, rows)
        if (sizes < 1).any():
            raise CorruptCacheError(f"{self._rows.part.prefix} says of an image that is there that it has no pixels")
        return sizes

    def _resized_one_by_one(
        self, samples: np.ndarray, shows: np.ndarray, boxes: np.ndarray, network_input: ImageInput, device: torch.device
    ) -> Inputs:
        """By Pillow, each sample's frame in memory only while it is shown."""
        items: dict[int, Prepared] = {}
        order = np.argsort(shows, kind="stable").tolist()
        for shown, places in itertools.groupby(order, key=shows.__getitem__):
            frame = self.part.take(self._image, samples[[shown]])[0]
            for at in places:
                items[at] = resample(frame, boxes[at], network_input.size, network_input.interpolation)
        return _moved(network_input.collate([items[at] for at in sorted(items)]), device)

    def _resized_together(
        self, samples: np.ndarray, shows: np.ndarray, boxes: np.ndarray, network_input: ImageInput, device: torch.device
    ) -> Inputs:
        """On the device, each sample's frame moved there once."""
        needed, where = np.unique(shows, return_inverse=True)
        moved = self._whole_frames(samples[needed], device)
        step = max(_BYTES_AT_ONCE // (8 * self._image.row_bytes), 1)
        chunks = [slice(at, at + step) for at in range(0, shows.size, step)]
        size, interpolation = network_input.size, network_input.interpolation
        resized = [resample_batch(moved, boxes[chunk], where[chunk], size, interpolation) for chunk in chunks]
        return {"images": torch.cat(resized) if len(resized) > 1 else resized[0]}

    def _whole_frames(self, rows: np.ndarray, device: torch.device) -> torch.Tensor:
        """uint8 (rows, size, size, 3) on a device."""
        if self._held is not None and (self._held[1][rows] >= 0).all():
            frames, place = self._held
            return frames.index_select(0, sent(place[rows], device))
        self.part.check(self._image, rows)
        # pinned memory is kept by torch for the next batch, once the copy from it is done
        room = torch.empty((len(rows), *self._image.shape), dtype=torch.uint8, pin_memory=device.type == "cuda")
        self.part.take(self._image, rows, out=room.numpy())
        return room.to(device, non_blocking=True)

    @property
    def _image(self) -> ArraySpec:
        return self.part.part.array("image")


@runtime_checkable
class Listed(Protocol):
    """What the cache knows of a split's samples without having them."""

    modality: Modality
    class_names: tuple[str, ...]
    fingerprint: str

    @property
    def keys(self) -> Sequence[str]:
        """The key of each row."""
        ...

    @property
    def labels(self) -> np.ndarray:
        """int64 (rows,): the class index of each row, NO_LABEL where it has none."""
        ...


class ListedSource:
    """A source that knows keys and labels, as the cache lists them, and has no samples: for use with stored inputs."""

    def __init__(self, reader: Listed) -> None:
        """Of a split's CacheReader."""
        self.modality: Modality = reader.modality
        self.class_names: tuple[str, ...] = reader.class_names
        self.keys: Sequence[str] = reader.keys
        self.labels: np.ndarray = reader.labels
        self._fingerprint = reader.fingerprint

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> Sample:
        """Raises SourceError."""
        _no_samples()

    def iter(self, start: int, stop: int) -> Iterator[Sample]:
        """Raises SourceError."""
        _no_samples()

    def fingerprint(self) -> str:
        """Of the source that the cache was made from."""
        return self._fingerprint


def _no_samples() -> NoReturn:
    raise SourceError("the cache holds inputs only, not the samples themselves", hint="give the data set with --data")


def _texts(frames: Frames, reasons: np.ndarray, ids: Sequence[np.ndarray], network_input: TextInput) -> Inputs:
    """Every frame of a valid sample, padded; `ids` are those of each sample."""
    valid = _valid_frames(frames, reasons)
    items = [network_input.show(ids[frames.shows[at]].tolist(), frames.parameters[at]) for at in valid]
    return network_input.collate(items) if items else {}


def _valid_frames(frames: Frames, reasons: np.ndarray) -> np.ndarray:
    """int64: the frames of samples that are there."""
    return np.flatnonzero(reasons[frames.shows] == Reason.VALID)


def _moved(inputs: Inputs, device: torch.device) -> Inputs:
    return {name: sent(tensor.numpy(), device) for name, tensor in inputs.items()}
