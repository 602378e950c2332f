"""What a student of several teachers, or of balanced embeddings, is judged by."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from featurecache.errors import UsageError
from featurecache.types import Json, SparseLogits
from pipelines.load import has_outputs, open_split
from student.balance import Balance, load_balances
from student.evaluate import compare
from student.given import Given, check_same_samples, elsewhere, matching_rows, targets_of
from student.join import Elsewhere
from student.selection import label_map

if TYPE_CHECKING:
    from featurecache.store.reader import Cache
    from student.targets.ensemble import How

__all__ = ["Several"]

_SCORES = ("teacher_accuracy", "agreement", "kl", "cosine")


@dataclass(frozen=True, slots=True)
class Several:
    """The teachers of a student on the split that it is judged on; none where it had one alone."""

    given: tuple[Given, ...]
    ensemble: "How | None"
    balances: Mapping[str, Balance]

    @classmethod
    def open(cls, folder: Path, facts: Json, caches: "Sequence[Cache]", split: str) -> "Several":
        """As the student's facts tell them. Raises UsageError for a split that not all of them have, IdentityError
        where they saw other samples there."""
        balances = load_balances(folder / "balance.safetensors")
        readers = [open_split(cache, split) for cache in caches if has_outputs(cache, split)]
        given = []
        for teacher, made in facts.get("teachers", {}).items():
            for reader in readers:
                names = {output: reader.named(output, maker) for output, maker in made.items()}
                outputs = {output: name for output, name in names.items() if name is not None}
                if len(outputs) == len(made):
                    row_of = None if reader is readers[0] else matching_rows(readers[0], reader)
                    given.append(Given(teacher, reader, outputs, row_of))
                    break
            else:
                message = f"no cache has all that {teacher} gave of split {split!r}, which this student learned from"
                raise UsageError(message, hint="extract this split with that teacher, or give another --split")
        if given:
            check_same_samples(given, [name for one in given for name in one.specs])
        return cls(tuple(given), facts.get("ensemble"), balances)

    @property
    def others(self) -> list[Elsewhere]:
        """What other caches than the first must have of a row."""
        return elsewhere(self.given, [name for one in self.given for name in one.specs])

    def plain(self, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The student's outputs, with those that learned from the first teacher under plain names as well."""
        own = f"{self.given[0].teacher}/" if self.given else "/"
        return {name.removeprefix(own): values for name, values in outputs.items() if name.startswith(own)} | dict(
            outputs
        )

    def balanced(self, embedding: Tensor) -> Tensor:
        """The first teacher's embedding (rows, dim) as the student was to learn it."""
        balance = self.balances.get(self.given[0].known_as("embedding") if self.given else "embedding")
        return embedding if balance is None else balance.apply(embedding)

    def targets(
        self, plain: Mapping[str, Tensor | SparseLogits], rows: np.ndarray
    ) -> "dict[str, Tensor | SparseLogits]":
        """The first teacher's outputs of some rows as the student was to learn them: balanced, or of the ensemble."""
        found = dict(plain)
        if isinstance(embedding := found.get("embedding"), Tensor):
            found["embedding"] = self.balanced(embedding)
        if self.ensemble:
            members = [one.known_as("logits") for one in self.given if "logits" in one.outputs]
            # at temperature 1, where the mean of probabilities is what the ensemble says
            found |= targets_of(self.given, ["logits"], members=members, how=self.ensemble).read(
                rows, outputs=["logits"]
            )
        return found

    def scores(
        self, found: Mapping[str, Tensor], rows: np.ndarray, labels: np.ndarray, class_names: Sequence[str]
    ) -> dict[str, dict[str, float | None]]:
        """For each teacher, how far its own head agrees with it, or the head that learned from the ensemble."""
        scores = {}
        for one in self.given:
            known = list(one.specs)
            values = targets_of([one], known, balances=self.balances).read(rows)
            logits = one.reader.outputs.get(one.outputs.get("logits", ""))
            classes = label_map(class_names, logits.classes if logits else ())
            heads = {name: found[head] for name in one.outputs if (head := self._head(one, name, found)) is not None}
            result = compare(heads, {name: values[one.known_as(name)] for name in one.outputs}, labels, classes)
            scores[one.teacher] = {name: result[name] for name in _SCORES}
        return scores

    def _head(self, one: Given, output: str, found: Mapping[str, Tensor]) -> str | None:
        own = one.known_as(output)
        if own in found:
            return own
        return output if self.ensemble and output == "logits" and output in found else None
