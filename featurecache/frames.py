"""Which frames a batch is made of: samples, each decoded once, and what is shown of them in which view."""

from dataclasses import dataclass

import numpy as np

__all__ = ["Frames"]


@dataclass(frozen=True, slots=True)
class Frames:
    """One batch as it is asked for: frames in order, each the view of one sample."""

    samples: np.ndarray
    """int64 (samples,): the index of each sample that is decoded, none of them twice."""
    shows: np.ndarray
    """int64 (frames,): which of these samples each frame shows."""
    parameters: np.ndarray
    """float32 (frames, parameters): of each frame's view; without columns every frame is the plain view."""
    partners: np.ndarray
    """int64 (asked,): which frame each one that was asked for is mixed with, -1 for none. The frames beyond are there
    for nothing else."""
    hashed: np.ndarray | None = None
    """bool (samples,): of which samples the decoded pixels or the tokens are hashed; None leaves it to the loader."""

    def __len__(self) -> int:
        """How many frames were asked for."""
        return int(self.partners.size)

    @classmethod
    def plain(cls, samples: np.ndarray) -> "Frames":
        """View 0 of each of these samples, int64."""
        count = len(samples)
        return cls(samples, np.arange(count), np.zeros((count, 0), np.float32), np.full(count, -1))

    @classmethod
    def of(
        cls,
        samples: np.ndarray,
        parameters: np.ndarray,
        partners: np.ndarray | None = None,
        partner_parameters: np.ndarray | None = None,
    ) -> "Frames":
        """Views of these samples, a sample's views one after the other.

        samples: int64 (samples,), none twice; parameters: float32 (samples, views, parameters); partners: int64
        (samples, views), the sample that each view is mixed with, -1 for none; partner_parameters: float32 (samples,
        views, parameters), of the partner's own view.
        """
        count, views, width = parameters.shape
        shows = np.repeat(np.arange(count), views)
        rows = parameters.reshape(count * views, width)
        mixed = np.full(count * views, -1)
        if partners is None or partner_parameters is None or not (partners >= 0).any():
            return cls(samples, shows, rows, mixed)
        others = partners.reshape(-1)
        at = np.flatnonzero(others >= 0)
        decoded, where = np.unique(others[at], return_inverse=True)
        place = _places(samples, decoded)
        mixed[at] = shows.size + np.arange(at.size)
        return cls(
            np.concatenate([samples, decoded[place >= count]]),
            np.concatenate([shows, place[where]]),
            np.concatenate([rows, partner_parameters.reshape(count * views, width)[at]]),
            mixed,
        )


def _places(samples: np.ndarray, others: np.ndarray) -> np.ndarray:
    """int64 (others,): where each other one is among the samples, or behind them, in order, where it is not."""
    order = np.argsort(samples, kind="stable")
    at = np.minimum(np.searchsorted(samples, others, sorter=order), len(samples) - 1)
    place = order[at]
    is_new = samples[place] != others
    place[is_new] = len(samples) + np.arange(is_new.sum())
    return place
