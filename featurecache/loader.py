"""Reading, decoding and preparing samples in worker processes, batch by batch: one path for teacher and student."""

import signal
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from featurecache.errors import BadSampleError, DiskFullError, FeatureCacheError, SourceError
from featurecache.fingerprint import content_hash, hash_pixels
from featurecache.inputs import Input, Inputs
from featurecache.sources.base import Source
from featurecache.sources.decode import decode
from featurecache.types import Reason, Sample

__all__ = ["Loaded", "load"]


@dataclass(frozen=True, slots=True)
class Loaded:
    """One batch of samples. Bad ones are told by their reason and left out of the inputs."""

    rows: np.ndarray
    """int64 (batch,): which samples of the source."""
    reasons: np.ndarray
    """uint8 (batch,): a `Reason`; the inputs hold the rows where it is VALID, in order."""
    content_hashes: np.ndarray
    """uint64 (batch,): of the encoded bytes."""
    input_hashes: np.ndarray
    """uint64 (batch,): of the decoded pixels or the token ids; 0 where not asked for, or bad."""
    inputs: Inputs
    """Empty if every sample is bad."""

    @property
    def valid(self) -> np.ndarray:
        """int64: where in the batch the rows of the inputs belong."""
        return np.flatnonzero(self.reasons == Reason.VALID)

    def pin_memory(self) -> "Loaded":
        """Called by the DataLoader, so that the copy to a GPU need not wait."""
        pinned = {name: tensor.pin_memory() for name, tensor in self.inputs.items()}
        return Loaded(self.rows, self.reasons, self.content_hashes, self.input_hashes, pinned)


def load(
    source: Source,
    network_input: Input,
    batches: Iterable[np.ndarray],
    *,
    workers: int = 0,
    hash_inputs: bool = False,
    pin_memory: bool = False,
) -> Iterator[Loaded]:
    """Each batch of row numbers, read, decoded and collated, in the order given; `workers` processes run ahead.

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


def _leave_signals_to_the_main_process(_: int) -> None:
    """^C reaches every process of a terminal; whether to go on to the end of a shard is not a worker's decision."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


class _Batches(Dataset["Loaded | FeatureCacheError"]):
    """A data set whose index is a whole batch of row numbers."""

    def __init__(self, source: Source, network_input: Input, hash_inputs: bool) -> None:
        self.source = source
        self.input = network_input
        self.hash_inputs = hash_inputs

    def __getitem__(self, rows: np.ndarray) -> "Loaded | FeatureCacheError":
        try:
            return self._loaded(rows)
        except (SourceError, DiskFullError) as error:
            return error  # raised in a worker process, it would arrive as a traceback without its hint

    def _loaded(self, rows: np.ndarray) -> Loaded:
        count = len(rows)
        reasons = np.zeros(count, np.uint8)
        contents, inputs = np.zeros(count, np.uint64), np.zeros(count, np.uint64)
        items = []
        for at, sample in enumerate(self._samples(rows)):
            contents[at] = content_hash(sample.encoded)
            try:
                data = decode(sample, self.source.modality)
                item = self.input.prepare(data)
            except BadSampleError as error:
                reasons[at] = error.reason
                continue
            if self.hash_inputs:
                inputs[at] = hash_pixels(item if isinstance(data, str) else data)
            items.append(item)
        return Loaded(np.asarray(rows), reasons, contents, inputs, self.input.collate(items) if items else {})

    def _samples(self, rows: np.ndarray) -> Iterator[Sample]:
        if len(rows) > 1 and (np.diff(rows) == 1).all():
            return self.source.iter(int(rows[0]), int(rows[-1]) + 1)
        return (self.source[int(row)] for row in rows)
