"""The parameters of a split's views as they were drawn, and the frames that batches of them ask for."""

from collections.abc import Sequence

import numpy as np

from featurecache.augment import ImageAugmentation, TokenAugmentation
from featurecache.errors import CorruptCacheError, UsageError
from featurecache.frames import Frames
from featurecache.inputs import Input, TextInput
from featurecache.store.described import described_views, views_array
from featurecache.store.part_reader import PartReader
from featurecache.types import Json

__all__ = ["StoredViews"]


class StoredViews:
    """Every view of a split from number 1 on, over the parts that hold them; view 0 has no parameters."""

    def __init__(self, parts: Sequence[PartReader]) -> None:
        """Parts of kind "views", at least one. Raises CorruptCacheError unless they are one row of views, 1 to N."""
        self.parts = sorted(parts, key=lambda part: _views(part)[0])
        self.augmentation = described_views([part.part for part in self.parts])
        self.stop = _views(self.parts[-1])[1]
        """One past the last view."""
        first = self.parts[0].part
        self.rows = first.rows
        self.proof = str(first.facts["proof"])
        """`Augmentation.proof` where the views were drawn."""
        self.identity: Json = {name: first.facts[name] for name in ("augmentation", "seed", "proof")}
        """What decides, with a row's key, what its views are; where they mix samples, the order of the rows as well."""
        self._array = views_array(self.augmentation)

    def check_fits(self, network_input: Input) -> None:
        """Raises CorruptCacheError if views are of the other kind of samples, or have tokens that a network has not."""
        if self.augmentation.modality != network_input.modality:
            message = f"{self.parts[0].part.prefix} changes {self.augmentation.modality}s"
            raise CorruptCacheError(f"{message}, and the network takes {network_input.modality}s")
        limit = network_input.vocabulary_size if isinstance(network_input, TextInput) else 0
        if isinstance(self.augmentation, TokenAugmentation) and self.augmentation.vocabulary > limit:
            prefix, found = self.parts[0].part.prefix, self.augmentation.vocabulary
            raise CorruptCacheError(f"the views of {prefix} have {found:,} tokens, and the tokenizer has {limit:,}")

    def parameters(self, rows: np.ndarray, views: np.ndarray) -> np.ndarray:
        """float32 (n, parameters) of these rows in these views, both int64 (n,).

        Raises UsageError for views that there are not, CorruptCacheError for numbers that no augmentation draws.
        """
        if views.size and not 0 <= views.min() <= views.max() < self.stop:
            raise UsageError(f"there are views 0 to {self.stop - 1}, not {views.min()} to {views.max()}")
        found = np.tile(self.augmentation.plain, (len(rows), 1))
        for part in self.parts:
            start, stop = _views(part)
            at = np.flatnonzero((views >= start) & (views < stop))
            if at.size:
                found[at] = part.take(self._array, rows[at], view=views[at])
        if not self.augmentation.accepts(found):
            raise CorruptCacheError(f"{self.parts[0].part.prefix} holds numbers that its augmentation never draws")
        return found

    def frames(
        self,
        rows: np.ndarray,
        views: np.ndarray,
        samples: np.ndarray | None = None,
        *,
        bad: np.ndarray | None = None,
    ) -> Frames:
        """The frames of rows int64 (n,), each in views int64 (n, m), and of those that they are mixed with.

        `samples` int64 (rows of the split,) says which sample of a source each row is, -1 for none; by default the
        source has the split's own order. `bad` bool (rows of the split,) says which rows the teacher could not decode,
        so that nothing was mixed with them; by default that is found again. Raises UsageError where the sample of a
        partner is not there.
        """
        count, each = views.shape
        parameters = self.parameters(np.repeat(rows, each), views.reshape(-1))
        shaped = parameters.reshape(count, each, -1)
        own = rows if samples is None else samples[rows]
        if not isinstance(self.augmentation, ImageAugmentation) or not self.augmentation.mixes:
            return Frames.of(own, shaped)
        offsets = self.augmentation.partner_offsets(parameters)
        others = self._partner_rows(np.repeat(rows, each), offsets)
        if bad is not None:
            offsets = np.where(bad[others], 0, offsets)
            others = np.repeat(rows, each) + offsets
        partners = others if samples is None else samples[others]
        if (partners < 0).any():
            message = "some samples are mixed with others that these data do not have"
            raise UsageError(message, hint="give all the data that the cache was made from")
        of_partners = self.parameters(others, views.reshape(-1)).reshape(count, each, -1)
        mixed = np.where(offsets == 0, -1, partners).reshape(count, each)
        return Frames.of(own, shaped, mixed, of_partners)

    def _partner_rows(self, rows: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        others = rows + offsets
        if others.size and not 0 <= others.min() <= others.max() < self.rows:
            raise CorruptCacheError(f"{self.parts[0].part.prefix} mixes rows with some that there are not")
        return others


def _views(part: PartReader) -> tuple[int, int]:
    return part.part.views or (0, 1)
