"""Whether the student is shown what the teacher was shown: the same bytes, decoded to the same pixels or tokens."""

import importlib.metadata
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Literal, TypeAlias

import numpy as np

from featurecache.errors import CorruptCacheError, IdentityError, UsageError
from featurecache.frames import Frames
from featurecache.inputs import ImageInput, Input, input_from_json
from featurecache.loader import Loaded
from featurecache.store.reader import CacheReader
from featurecache.store.stored_inputs import StoredInputs

__all__ = ["Alignment", "CheckInputs", "check_augmentation", "check_stored"]

CheckInputs: TypeAlias = Literal["all", "sample", "off"]
"""Bytes and pixels of every sample; bytes of every sample, pixels of the first batch and a sixteenth later; nothing."""

_EVERY = 16
_OFF = "; --check-inputs off trains on regardless"


class Alignment:
    """Compares what is read and decoded with the hashes that the cache holds of it."""

    def __init__(
        self,
        reader: CacheReader,
        outputs: Sequence[str],
        network_input: Input,
        sample_of: np.ndarray,
        *,
        level: CheckInputs,
    ) -> None:
        """`sample_of` is int64 (rows of the cache,): the source's index of each row, -1 for none."""
        self._reader = reader
        self._output = next(iter(outputs or reader.outputs))
        self._part = reader.teacher_part(self._output)
        self._row_of = np.full(int(sample_of.max(initial=-1)) + 1, -1)
        self._row_of[sample_of[sample_of >= 0]] = np.flatnonzero(sample_of >= 0)
        self._level = level
        # texts that are cut elsewhere than the teacher's have other tokens, as they should
        same_tokens = network_input.to_json() == self._part.facts["input"]
        self._hashes_inputs = level != "off" and (network_input.modality == "image" or same_tokens)

    def marked(self, frames: Frames, number: int) -> Frames:
        """A batch, the number-th of a run, with a mark at the samples whose pixels or tokens are to be hashed."""
        if not self._hashes_inputs:
            return frames
        is_all = self._level == "all" or number == 0
        hashed = np.full(len(frames.samples), True) if is_all else frames.samples % _EVERY == number % _EVERY
        return replace(frames, hashed=hashed)

    def check(self, loaded: Loaded, keys: Sequence[str]) -> None:
        """Raises IdentityError for a sample that the teacher saw otherwise. `keys` are those of the source."""
        if self._level == "off":
            return
        rows = self._row_of[loaded.rows]
        changed = np.flatnonzero(loaded.content_hashes != self._reader.content_hashes[rows])
        if changed.size:
            hint = "give the data the cache was made from, or extract again into a new cache" + _OFF
            key = keys[int(loaded.rows[changed[0]])]
            raise IdentityError(f"sample {key!r} is not what the teacher saw: its bytes differ", hint=hint)
        seen = loaded.input_hashes
        differs = np.flatnonzero((seen != 0) & (seen != self._hashes[rows]))
        if differs.size:
            raise self._decoded_otherwise(keys[int(loaded.rows[differs[0]])])

    @cached_property
    def _hashes(self) -> np.ndarray:
        """uint64 (rows of the cache,): of what the teacher was shown; read once, not for every batch."""
        return self._reader.input_hashes(self._output)

    def _decoded_otherwise(self, key: str) -> IdentityError:
        package, what = ("pillow", "pixels") if self._reader.modality == "image" else ("tokenizers", "tokens")
        versions = self._part.provenance.get("packages")
        there = versions.get(package) if isinstance(versions, dict) else None
        here = importlib.metadata.version(package)
        message = f"sample {key!r} has the bytes that the teacher saw, but gives other {what} here"
        message += f": {package} {there or 'of another version'} read it then, {here} does now"
        hint = f"use the {package} that the cache was made with, or extract again into a new cache{_OFF}"
        return IdentityError(message, hint=hint)


def check_augmentation(reader: CacheReader, outputs: Sequence[str], *, views: int) -> None:
    """Raises IdentityError if views are not made here as they were for the teacher behind the outputs."""
    for output in outputs or reader.outputs:
        _check_plain_view(reader, output)
    stored = reader.stored_views
    if views > 1 and stored is not None and stored.augmentation.proof() != stored.proof:
        message = f"the augmentation {stored.augmentation.name!r} makes other views here than it did for the teacher"
        hint = "use the featurecache and pillow that the cache was made with, or extract again into a new cache" + _OFF
        raise IdentityError(message, hint=hint)


def check_stored(reader: CacheReader, outputs: Sequence[str], stored: StoredInputs) -> None:
    """Raises IdentityError if inputs that the cache holds are not of the pixels or tokens that the teacher saw."""
    output = next(iter(outputs or reader.outputs))
    if stored.modality == "text" and reader.teacher_part(output).facts["input"] != stored.input:
        return  # cut at another length
    differs = np.flatnonzero(reader.input_hashes(output) != stored.input_hashes())
    if differs.size:
        message = f"row {differs[0]:,} of the stored inputs is not what the teacher of {output} saw"
        raise IdentityError(message, hint="give the data with --data" + _OFF)


def check_same_length(reader: CacheReader, outputs: Sequence[str], network_input: Input) -> None:
    """Raises UsageError where a student would not have the tokens that the teacher's outputs are for."""
    for output in outputs:
        longest, there = reader.outputs[output].longest, reader.teacher_part(output).facts["input"]
        if not longest or there == (here := network_input.to_json()):
            continue
        message = f"{output} is for each token of texts of at most {longest}, and the student's are cut otherwise"
        if here["kind"] == "text" and here["tokenizer_sha256"] == there.get("tokenizer_sha256"):
            message = (
                f"{output} is for each token of texts cut at {longest}, and the student's are at {here['max_length']}"
            )
        raise UsageError(message, hint="leave out --max-length, so that the student has the teacher's own tokens")


def check_lengths(reader: CacheReader, outputs: Sequence[str], stored: StoredInputs, rows: np.ndarray) -> None:
    """Raises CorruptCacheError where rows (int64) have other numbers of tokens than outputs for each of them."""
    for output in outputs:
        if reader.outputs[output].longest and stored.modality == "text":
            differs = np.flatnonzero(reader.lengths(output, rows) != stored.lengths(rows))
            if differs.size:
                message = f"row {rows[differs[0]]:,} has another number of tokens than {output} was made for"
                raise CorruptCacheError(message, hint="extract it again into a new cache")


def _check_plain_view(reader: CacheReader, output: str) -> None:
    part = reader.teacher_part(output)
    kind = part.facts["input"]
    if reader.modality != "image" or "proof" not in part.facts:
        return  # tokens are compared sample by sample
    try:
        network_input = input_from_json(kind)
    except UsageError as error:
        raise CorruptCacheError(f"{part.prefix}/part.json has an input that is none: {error.message}") from None
    assert isinstance(network_input, ImageInput)
    if network_input.proof() != part.facts["proof"]:
        message = f"images are resized otherwise here than for the teacher of {part.prefix}"
        hint = "use the pillow that the cache was made with, or extract again into a new cache" + _OFF
        raise IdentityError(message, hint=hint)
