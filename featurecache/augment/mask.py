"""BERT's corruption of texts as a view: which tokens are hidden, and what stands in their place."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np

from featurecache.augment.base import Column, accepted
from featurecache.augment.checks import check_name, check_number
from featurecache.augment.randomness import uniforms
from featurecache.errors import UsageError
from featurecache.fingerprint import canonical_json
from featurecache.types import Json, Modality

__all__ = ["TokenAugmentation", "chosen", "corrupt"]

_MOST_TOKENS = 2**24
"""Above it a float32 does not hold every token id."""


@dataclass(frozen=True, kw_only=True)
class TokenAugmentation:
    """Some tokens of a text are chosen; most become the mask token, some any other token, some stay what they are."""

    mask_id: int
    """The token that hides another."""
    vocabulary: int
    """Number of token ids."""
    special_ids: tuple[int, ...]
    """Tokens that are never chosen and never put in place of another."""
    max_length: int
    """Tokens of the longest text, special ones included."""
    share: float = 0.15
    """Of a text's ordinary tokens, how many are chosen: one at least."""
    masked: float = 0.8
    """Of the chosen tokens, how many become the mask token."""
    random: float = 0.1
    """Of the chosen tokens, how many become any other one."""
    name: str = "mask"
    version: int = 1
    modality: ClassVar[Modality] = "text"

    def __post_init__(self) -> None:
        check_name(self.name, self.version)
        check_number("the max_length of a mask", self.max_length, 1, 2**16)
        check_number("the vocabulary of a mask", self.vocabulary, 1, _MOST_TOKENS)
        check_number("the share of a mask", self.share, 0, 1)
        check_number("the masked share of a mask", self.masked, 0, 1)
        check_number("the random share of a mask", self.random, 0, 1 - self.masked + 1e-9)
        check_number("the mask_id of a mask", self.mask_id, 0, self.vocabulary - 1)
        if not all(0 <= token < self.vocabulary for token in self.special_ids):
            raise UsageError("a special token of a mask is not in its vocabulary")
        if len(set(self.special_ids)) >= self.vocabulary:
            raise UsageError("a mask leaves no token that is not special")

    @property
    def pairs(self) -> int:
        """How many tokens of the longest text are chosen."""
        return max(1, round(self.share * self.max_length))

    @cached_property
    def parameters(self) -> tuple[str, ...]:
        """Pairs of a position and the token that stands there then."""
        return tuple(f"{what}.{number}" for number in range(1, self.pairs + 1) for what in ("position", "token"))

    @cached_property
    def plain(self) -> np.ndarray:
        """float32 (parameters,): nothing chosen."""
        return np.full(2 * self.pairs, -1, np.float32)

    def accepts(self, parameters: np.ndarray) -> bool:
        """Whether float32 (n, parameters) may have been drawn: positions and tokens that there are, or -1 for both."""
        both = (
            Column("position", -1, -1, self.max_length - 1, whole=True),
            Column("token", -1, -1, self.vocabulary - 1, whole=True),
        )
        if not accepted(both * self.pairs, parameters):
            return False
        return bool(((parameters[:, 0::2] < 0) == (parameters[:, 1::2] < 0)).all())

    def draw(self, keys: Sequence[str], tokens: Sequence[np.ndarray], *, view: int, seed: int) -> np.ndarray:
        """float32 (keys, parameters) of one view; tokens: the ids of each text, special ones included.

        Pairs are in order of their positions, and -1 behind them.
        """
        numbers = uniforms(keys, seed=seed, view=view, count=self.max_length + 2 * self.pairs)
        result = np.tile(self.plain, (len(keys), 1))
        for row, ids in enumerate(tokens):
            positions = self._positions(ids, numbers[row, : self.max_length])
            what, which = numbers[row, self.max_length :].reshape(2, self.pairs)[:, : positions.size]
            result[row, 0 : 2 * positions.size : 2] = positions
            result[row, 1 : 2 * positions.size : 2] = self._tokens(ids[positions], what, which)
        return result

    def to_json(self) -> Json:
        """Every field, and the modality."""
        return {**asdict(self), "special_ids": list(self.special_ids), "modality": self.modality}

    def proof(self) -> str:
        """SHA-256 (hexadecimal) over itself and views drawn for fixed texts."""
        digest = hashlib.sha256(canonical_json(self.to_json()))
        keys = [f"proof/{number}" for number in range(4)]
        lengths = (0, 1, self.max_length // 2, self.max_length)
        texts = [np.arange(length) * 31 % self.vocabulary for length in lengths]
        for view in (1, 2):
            digest.update(self.draw(keys, texts, view=view, seed=view).astype("<f4").tobytes())
        return digest.hexdigest()

    def _positions(self, ids: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """int64: the positions of ordinary tokens that have the smallest numbers, in order."""
        ordinary = np.flatnonzero(~np.isin(ids[: self.max_length], self.special_ids))
        count = min(max(1, round(self.share * ordinary.size)), self.pairs)
        return np.sort(ordinary[np.argsort(numbers[ordinary], kind="stable")[:count]])

    def _tokens(self, own: np.ndarray, what: np.ndarray, which: np.ndarray) -> np.ndarray:
        """What stands in place of chosen tokens: `what` says which of three, `which` any of the ordinary tokens."""
        other = self._ordinary(which)
        return np.where(what < self.masked, self.mask_id, np.where(what < self.masked + self.random, other, own))

    def _ordinary(self, which: np.ndarray) -> np.ndarray:
        """int64: from each number in [0, 1) a token id, all but the special ones equally likely."""
        special = np.unique(np.array(self.special_ids, np.int64))
        number = np.floor(which * (self.vocabulary - special.size)).astype(np.int64)
        ordinary_before = special - np.arange(special.size)
        return number + np.searchsorted(ordinary_before, number, side="right")


def corrupt(ids: list[int], parameters: np.ndarray) -> list[int]:
    """Token ids with those in place that a view, float32 (parameters,), puts there; positions beyond are left out."""
    changed = list(ids)
    pairs = parameters.astype(np.int64).reshape(-1, 2)
    for position, token in pairs[(pairs[:, 0] >= 0) & (pairs[:, 0] < len(ids))].tolist():
        changed[position] = token
    return changed


def chosen(parameters: np.ndarray) -> np.ndarray:
    """int64: the positions that a view, float32 (parameters,), has chosen, in order: a student is to guess them."""
    positions = parameters[0::2].astype(np.int64)
    return positions[positions >= 0]
