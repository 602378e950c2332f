"""Masked language modelling (BERT; Devlin et al., NAACL 2019, arXiv 1810.04805): what a student learns from text alone.

Whole texts, one at a time: there is no next-sentence task, which RoBERTa (arXiv 1907.11692) found to be of no use.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertForMaskedLM

from featurecache.inputs import TextInput
from featurecache.masking import mask_of
from featurecache.transfer import Transfer
from student.data import CachedData
from student.models.bert import BertBackbone, quiet
from student.objectives.base import Batch
from student.objectives.weighted import WeightedSum

__all__ = ["MaskedLanguageModel", "MaskedTexts", "masked_objective"]

_CHOSEN = "chosen"
"""bool (batch, tokens) among the inputs: where a token is to be guessed."""
_GUESSES = "vocabulary"
_LEFT_OUT = 0
"""The view of texts that validate; those that train have 1 and more."""


class MaskedLanguageModel(nn.Module):
    """A backbone with BERT's own head: a layer, a norm, and the word embeddings again, with a bias."""

    def __init__(self, backbone: BertBackbone) -> None:
        super().__init__()
        self.input = backbone.input
        self.name = backbone.name
        self.network = BertForMaskedLM(backbone.network.config)
        self.network.bert = backbone.network
        self.network.tie_weights()

    def forward(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """{"ids", "mask", "chosen": (batch, tokens)} -> {"vocabulary": float32 (chosen tokens, vocabulary)}."""
        hidden: Tensor = self.network.bert(input_ids=inputs["ids"], attention_mask=inputs["mask"]).last_hidden_state
        return {_GUESSES: self.network.cls(hidden[inputs[_CHOSEN]]).float()}

    def save(self, folder: Path) -> None:
        """A transformers folder with its tokenizer, as `load_pretrained` of a backbone takes it."""
        with quiet():
            self.network.cpu().eval().save_pretrained(folder)
        (folder / "tokenizer.json").write_text(self.input.tokenizer_json, encoding="utf-8")


class _Guess(nn.Module):
    """The mean cross-entropy of the tokens that were hidden, in nats."""

    name: ClassVar[str] = "mlm"
    paper: ClassVar[str] = "Devlin et al., NAACL 2019, arXiv 1810.04805"
    needs: ClassVar[tuple[str, ...]] = (_GUESSES,)
    heads: ClassVar[tuple[str, ...]] = (_GUESSES,)
    bank_rows = 0

    def forward(self, student: Mapping[str, Tensor], batch: Batch) -> Tensor:
        guesses, tokens = student[_GUESSES], batch.dense(_GUESSES)
        return F.cross_entropy(guesses, tokens, reduction="sum") / max(len(tokens), 1)  # a batch of empty texts is 0


def masked_objective() -> WeightedSum:
    """What `MaskedLanguageModel` is trained towards."""
    return WeightedSum({"mlm": _Guess()}, {"mlm": 1.0})


class MaskedTexts:
    """Texts of a source with tokens hidden: others in every epoch, drawn by key and not by the order of batches."""

    def __init__(self, data: CachedData, *, seed: int, device: torch.device | str = "cpu") -> None:
        """`data` are the texts, on the CPU. Raises UsageError if its tokenizer has no token for a mask."""
        assert isinstance(data.input, TextInput)
        self.device = torch.device(device)
        self._data = data
        self._seed = seed
        self._mask = mask_of(data.input)

    def __len__(self) -> int:
        return len(self._data)

    def steps_per_epoch(self, batch_size: int) -> int:
        """Batches of an epoch."""
        return self._data.steps_per_epoch(batch_size)

    def shuffled(
        self, batch_size: int, *, seed: int, start: int, stop: int, part: tuple[int, int] = (0, 1)
    ) -> Iterator[Batch]:
        """Batches of steps [start, stop), each a function of (seed, step)."""
        per_epoch = self.steps_per_epoch(batch_size)
        batches = self._data.shuffled(batch_size, seed=seed, start=start, stop=stop, part=part)
        return self._masked((step // per_epoch + 1, batch) for step, batch in enumerate(batches, start))

    def in_order(self, batch_size: int, *, first: int = 0, every: int = 1) -> Iterator[Batch]:
        """Every text once, always with the same tokens hidden."""
        batches = self._data.in_order(batch_size, first=first, every=every)
        return self._masked((_LEFT_OUT, batch) for batch in batches)

    def keys_of(self, rows: Tensor) -> list[str]:
        """The keys of some of a batch's rows."""
        return self._data.keys_of(rows)

    def _masked(self, batches: Iterator[tuple[int, Batch]]) -> Iterator[Batch]:
        transfer = Transfer(self.device)
        for view, batch in batches:
            inputs, hidden = self._hide(batch, view)
            yield replace(
                batch,
                inputs={name: transfer.send(value) for name, value in inputs.items()},
                targets={_GUESSES: transfer.send(hidden)},
            )

    def _hide(self, batch: Batch, view: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """One view of a batch: other tokens at the chosen places, and what stood there, int64 (chosen tokens,)."""
        ids, mask = batch.inputs["ids"].numpy(), batch.inputs["mask"].numpy()
        texts = [row[real] for row, real in zip(ids, mask, strict=True)]
        drawn = self._mask.draw(self.keys_of(batch.rows), texts, view=view, seed=self._seed)
        places, tokens = drawn[:, 0::2].astype(np.int64), drawn[:, 1::2].astype(np.int64)
        rows, pairs = np.nonzero(places >= 0)
        at = (rows, places[rows, pairs])
        shown, chosen = ids.copy(), np.zeros_like(mask)
        shown[at], chosen[at] = tokens[rows, pairs], True
        return {"ids": shown, "mask": mask, _CHOSEN: chosen}, ids[chosen]
