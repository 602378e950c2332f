"""Which samples can be decoded: found out ahead of training, so that every batch is full and the steps are as many as
were asked for."""

from collections import Counter
from typing import TYPE_CHECKING

from featurecache.inputs import ImageInput, TextInput
from featurecache.sources import Source
from featurecache.types import Reason
from pipelines.events import Advance, Message, Run

if TYPE_CHECKING:
    import numpy as np

__all__ = ["readable_rows"]

_AT_ONCE = 64


def readable_rows(
    source: Source, network_input: ImageInput | TextInput, rows: "np.ndarray", *, workers: int, what: str
) -> "Run[np.ndarray]":
    """bool (rows,): which of some rows of a source, int64, can be decoded; tells how many cannot, and why.

    `what` they are called in the plural.
    """
    import numpy as np

    from featurecache.loader import load

    batches = np.split(rows, range(_AT_ONCE, rows.size, _AT_ONCE))
    reasons, done = [np.zeros(0, np.uint8)], 0
    for loaded in load(source, network_input, batches if rows.size else (), workers=workers):
        reasons.append(loaded.reasons)
        done += loaded.rows.size
        yield Advance("check", done, rows.size, "samples")
    found = np.concatenate(reasons)
    if found.any():
        counts = Counter(Reason(reason).text for reason in found[found > 0])
        told = ", ".join(f"{count:,} {reason}" for reason, count in counts.most_common())
        yield Message(f"{np.count_nonzero(found):,} of {rows.size:,} {what} are left out: {told}")
    return found == Reason.VALID
