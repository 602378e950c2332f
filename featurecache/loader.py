"""Reading, decoding and preparing samples in worker processes, batch by batch: one path for teacher and student."""

import itertools
import signal
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from featurecache.augment import Augmentation, ImageAugmentation
from featurecache.errors import BadSampleError, DiskFullError, FeatureCacheError, SourceError
from featurecache.fingerprint import content_hash, hash_pixels
from featurecache.frames import Frames
from featurecache.inputs import Input, Inputs, Prepared
from featurecache.sources.base import Source
from featurecache.sources.decode import decode
from featurecache.types import Reason, Sample

__all__ = ["Finished", "Loaded", "finish", "load"]


@dataclass(frozen=True, slots=True)
class Loaded:
    """One batch of samples. Bad ones are told by their reason, and no frame of theirs is among the inputs."""

    frames: Frames
    """What was asked for."""
    reasons: np.ndarray
    """uint8 (samples,): a `Reason`."""
    content_hashes: np.ndarray
    """uint64 (samples,): of the encoded bytes."""
    input_hashes: np.ndarray
    """uint64 (samples,): of the decoded pixels or the token ids; 0 where not asked for, or bad."""
    inputs: Inputs
    """Every frame of a VALID sample, in order; empty if there is none. What views do besides cutting out is to come."""

    @property
    def rows(self) -> np.ndarray:
        """int64 (samples,): which samples of the source."""
        return self.frames.samples

    @property
    def valid(self) -> np.ndarray:
        """int64: where among the frames those of the inputs belong."""
        return np.flatnonzero(self.reasons[self.frames.shows] == Reason.VALID)

    def pin_memory(self) -> "Loaded":
        """Called by the DataLoader, so that the copy to a GPU need not wait."""
        return replace(self, inputs={name: tensor.pin_memory() for name, tensor in self.inputs.items()})


def load(
    source: Source,
    network_input: Input,
    batches: Iterable[Frames | np.ndarray],
    *,
    workers: int = 0,
    hash_inputs: bool = False,
    pin_memory: bool = False,
) -> Iterator[Loaded]:
    """Each batch read, decoded and collated, in the order given; `workers` processes run ahead.

    Samples that are given by number alone, int64 (samples,), are shown in the plain view.

    Raises SourceError or DiskFullError where the source can no longer be read, as remote ones may not.
    """
    torch.multiprocessing.set_sharing_strategy(
        "file_system" if workers else torch.multiprocessing.get_sharing_strategy()
    )
    loader = DataLoader(
        _Batches(source, network_input, hash_inputs),
        batch_size=None,
        sampler=batches,  # any iterable will do; DataLoader asks for no more
        num_workers=workers,
        prefetch_factor=2 if workers else None,
        pin_memory=pin_memory,
        worker_init_fn=_leave_signals_to_the_main_process,
        generator=torch.Generator(),  # its own, or every loader would draw from the random numbers of dropout
    )
    for loaded in loader:
        if isinstance(loaded, FeatureCacheError):
            raise loaded
        yield loaded


@dataclass(frozen=True, slots=True)
class Finished:
    """The frames that were asked for, as a network takes them in."""

    asked: np.ndarray
    """int64 (valid,): which of them there are; the others are of samples that are bad."""
    partners: np.ndarray
    """int64 (valid,): the frame that each was mixed with, -1 where it was not."""
    inputs: Inputs


def finish(loaded: Loaded, inputs: Inputs, augmentation: Augmentation | None) -> Finished:
    """All that views do besides cutting out, on the device where the inputs of the batch are now.

    A frame whose partner is bad is not mixed.
    """
    frames, valid = loaded.frames, loaded.valid
    asked = valid[valid < len(frames)]
    nothing_to_do = not valid.size or not frames.parameters.shape[1]
    if nothing_to_do or not isinstance(augmentation, ImageAugmentation):
        return Finished(asked, np.full(asked.size, -1), inputs)
    place = np.full(frames.shows.size + 1, -1)  # the last one is where "no partner" points
    place[valid] = np.arange(valid.size)
    partners = frames.partners[asked]
    images = augmentation.finish(inputs["images"], frames.parameters[valid], place[partners])
    return Finished(asked, np.where(place[partners] < 0, -1, partners), {**inputs, "images": images})


def _leave_signals_to_the_main_process(_: int) -> None:
    """^C reaches every process of a terminal; whether to go on to the end of a shard is not a worker's decision."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


class _Batches(Dataset["Loaded | FeatureCacheError"]):
    """A data set whose index is a whole batch."""

    def __init__(self, source: Source, network_input: Input, hash_inputs: bool) -> None:
        self.source = source
        self.input = network_input
        self.hash_inputs = hash_inputs

    def __getitem__(self, batch: Frames | np.ndarray) -> "Loaded | FeatureCacheError":
        try:
            return self._loaded(batch if isinstance(batch, Frames) else Frames.plain(batch))
        except (SourceError, DiskFullError) as error:
            return error  # raised in a worker process, it would arrive as a traceback without its hint

    def _loaded(self, frames: Frames) -> Loaded:
        count = len(frames.samples)
        reasons = np.zeros(count, np.uint8)
        contents, inputs = np.zeros(count, np.uint64), np.zeros(count, np.uint64)
        shown = np.split(np.argsort(frames.shows, kind="stable"), np.bincount(frames.shows, minlength=count).cumsum())
        items: dict[int, Prepared] = {}
        for at, sample in enumerate(self._samples(frames.samples)):
            contents[at] = content_hash(sample.encoded)
            try:
                seen = self.input.read(decode(sample, self.source.modality))
                items |= {int(frame): self.input.show(seen, frames.parameters[frame]) for frame in shown[at]}
            except BadSampleError as error:
                reasons[at] = error.reason
                continue
            if self.hash_inputs if frames.hashed is None else frames.hashed[at]:
                inputs[at] = hash_pixels(seen)
        prepared = [items[frame] for frame in sorted(items)]
        return Loaded(frames, reasons, contents, inputs, self.input.collate(prepared) if prepared else {})

    def _samples(self, rows: np.ndarray) -> Iterator[Sample]:
        """Those that follow each other at the beginning are read in one go; behind them may be partners of a mix."""
        jumps = np.flatnonzero(np.diff(rows) != 1)
        run = int(jumps[0]) + 1 if jumps.size else len(rows)
        first = self.source.iter(int(rows[0]), int(rows[0]) + run) if run > 1 else ()
        return itertools.chain(first, (self.source[int(row)] for row in rows[run if run > 1 else 0 :]))
