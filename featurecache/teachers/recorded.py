"""A teacher that is known by what it said alone: another team's model, or one behind an address."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from featurecache.inputs import ImageInput, TextInput
from featurecache.types import Json, OutputSpec

__all__ = ["LIBRARY", "RecordedTeacher"]

LIBRARY = "records"
"""What the identity of such a teacher has in place of a library."""


class RecordedTeacher:
    """ "logits" (classes,) of the samples of one source, from records."""

    def __init__(
        self,
        name: str,
        network_input: ImageInput | TextInput,
        logits: np.ndarray,
        *,
        record_of: np.ndarray,
        classes: Sequence[str] = (),
        config: Json,
        sha256: str,
    ) -> None:
        """`network_input` is how students see the samples; nobody knows how the teacher did.

        logits: float32 (records, classes); record_of: int64 (samples,), the record of each, -1 for none. `config` and
        `sha256` say what the records are, and go into the identity.
        """
        self.name = name
        self.input = network_input
        self.outputs: tuple[OutputSpec, ...] = (OutputSpec("logits", (logits.shape[1],), tuple(classes)),)
        self._logits, self._record_of = logits, record_of
        self._config, self._sha256 = config, sha256

    def recall(self, samples: np.ndarray) -> tuple[np.ndarray, dict[str, Tensor]]:
        """int64 (samples,) -> positions of those with a record, int64 (known,), and logits float32 (known, classes)."""
        records = self._record_of[samples]
        known = np.flatnonzero(records >= 0)
        return known, {"logits": torch.from_numpy(self._logits[records[known]])}

    def identity(self) -> Json:
        """The name and the records; what weights gave them is not known."""
        return {
            "library": LIBRARY,
            "model": self.name,
            "config": self._config,
            "outputs": [spec.name for spec in self.outputs],
            "records_sha256": self._sha256,
        }
