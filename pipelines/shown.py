"""What a network is shown of a row in each of its views: through the very code that training uses."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from featurecache.augment import ImageAugmentation
from featurecache.errors import BadSampleError, CorruptCacheError, IdentityError, SourceError, UsageError
from featurecache.frames import Frames
from featurecache.inputs import ImageInput, Inputs, TextInput
from featurecache.loader import Loaded, finish, load
from featurecache.sources import Source
from featurecache.sources.decode import decode
from featurecache.store.described import LARGEST_SIZE
from featurecache.store.reader import CacheReader
from featurecache.store.stored_inputs import ListedSource, StoredInputs
from featurecache.types import Decoded, Reason
from pipelines.load import open_samples
from student.alignment import Alignment, check_augmentation

__all__ = ["Samples", "Shown", "check_made_alike", "show"]


@dataclass(frozen=True, slots=True)
class Samples:
    """Where the samples of a split come from."""

    source: Source
    stored: StoredInputs | None
    """The inputs that the cache holds, if it is those."""
    sample_of: np.ndarray
    """int64 (rows of the cache,): the source's index of each; -1 where the source has no such sample."""

    @classmethod
    def open(cls, reader: CacheReader, data: Sequence[str] | None, network_input: ImageInput | TextInput) -> "Samples":
        """From `data`, from where the cache says they were, or else the inputs it holds for such a network.

        Raises SourceError.
        """
        try:
            source = open_samples(reader.cache, reader.split, data)
        except SourceError:
            stored = None if data else reader.stored_inputs(network_input)
            if stored is None:
                raise
            return cls.held(reader, stored)
        sample_of = np.full(len(reader), -1)
        rows = reader.rows_of(source.keys)
        sample_of[rows[rows >= 0]] = np.flatnonzero(rows >= 0)
        return cls(source, None, sample_of)

    @classmethod
    def held(cls, reader: CacheReader, stored: StoredInputs) -> "Samples":
        """The inputs that the cache itself holds."""
        return cls(ListedSource(reader), stored, np.arange(len(reader)))

    def original(self, row: int) -> Decoded:
        """The sample of a row as it was decoded, uint8 (height, width, 3) or a text; the stored frame where it is not
        here, and "" in place of a text. Raises UsageError if it cannot be decoded."""
        if self.stored is not None:
            if self.stored.modality == "text":
                return ""
            return self.stored.part.take(self.stored.part.part.array("image"), np.array([row]))[0]
        sample = self.source[int(self.sample_of[row])]
        try:
            return decode(sample, self.source.modality)
        except BadSampleError as error:
            raise _unseen(sample.key, error.message) from None


@dataclass(frozen=True, slots=True)
class Shown:
    """One view of one row."""

    view: int
    inputs: Inputs
    """A batch of one, as the network takes it."""
    parameters: np.ndarray
    """float32 (parameters,): of the view; none where there are no views but the plain one."""
    mixed_with: str = ""
    """Key of the sample that it is mixed with; "" for none."""
    own_share: float = 1.0
    """How much of the label stays the sample's own."""


def check_made_alike(reader: CacheReader, views: int) -> None:
    """Raises IdentityError if views are not made here as they were for the teacher, CorruptCacheError for those of
    samples of another kind."""
    stored_views = reader.stored_views
    if stored_views is not None and stored_views.augmentation.modality != reader.modality:
        name = stored_views.augmentation.name
        raise CorruptCacheError(f"split {reader.split!r} is of {reader.modality}s, and its views {name!r} are not")
    try:
        check_augmentation(reader, (), views=views)
    except IdentityError as error:
        hint = "use the featurecache and pillow that the cache was made with"
        raise IdentityError(error.message, hint=hint) from None


def show(
    reader: CacheReader, samples: Samples, network_input: ImageInput | TextInput, row: int, views: int
) -> Iterator[Shown]:
    """The first views of a row, one after the other, and never two of them in memory.

    Raises IdentityError if a sample is not what the teacher saw, UsageError if it is not in the data, cannot be
    decoded, or is to be shown larger than any network needs it.
    """
    if isinstance(network_input, ImageInput) and network_input.size > LARGEST_SIZE:
        message = f"images of {network_input.size:,} pixels a side are not drawn"
        raise UsageError(message, hint=f"{LARGEST_SIZE:,} are the most")
    if reader.stored_views is not None:
        reader.stored_views.check_fits(network_input)
    key = reader.keys[row]
    if samples.sample_of[row] < 0:
        raise UsageError(f"the data have no sample {key[:200]!r}", hint="give the data the cache was made from")
    plan = [_frames(reader, samples, row, view) for view in range(views)]
    checks = Alignment(reader, (), network_input, samples.sample_of, level="all")
    if samples.stored is not None:
        batches = samples.stored.load(plan, network_input)
    else:
        batches = load(samples.source, network_input, [checks.marked(frames, 0) for frames in plan])
    for view, loaded in enumerate(batches):
        if samples.stored is None:
            _check(checks, loaded, samples.source.keys)
        yield _shown(reader, samples, loaded, view, key)


def _frames(reader: CacheReader, samples: Samples, row: int, view: int) -> Frames:
    rows = np.array([row])
    if reader.stored_views is None:
        return Frames.plain(samples.sample_of[rows])
    return reader.stored_views.frames(rows, np.array([[view]]), samples.sample_of)


def _check(checks: Alignment, loaded: Loaded, keys: Sequence[str]) -> None:
    try:
        checks.check(loaded, keys)
    except IdentityError as error:
        hint = "give the data that the cache was made from, and use the pillow or tokenizers it was made with"
        raise IdentityError(error.message, hint=hint) from None


def _shown(reader: CacheReader, samples: Samples, loaded: Loaded, view: int, key: str) -> Shown:
    stored_views = reader.stored_views
    augmentation = stored_views.augmentation if stored_views else None
    finished = finish(loaded, loaded.inputs, augmentation)
    if not finished.asked.size:
        raise _unseen(key, Reason(int(loaded.reasons[0])).text)
    parameters = loaded.frames.parameters[0]
    partner = int(finished.partners[0])
    if partner < 0 or not isinstance(augmentation, ImageAugmentation):
        return Shown(view, finished.inputs, parameters)
    other = samples.source.keys[int(loaded.rows[loaded.frames.shows[partner]])]
    share = augmentation.own_share(loaded.frames.parameters[:1])
    return Shown(view, finished.inputs, parameters, other, float(share[0]))


def _unseen(key: str, reason: str) -> UsageError:
    return UsageError(f"sample {key[:200]!r} cannot be shown: {reason}", hint="choose another with --key")
