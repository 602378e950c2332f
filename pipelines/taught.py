"""Which teachers a run learns from, and how what they gave becomes its targets."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from featurecache.errors import UsageError
from featurecache.store.reader import CacheReader
from featurecache.types import Json, OutputSpec
from pipelines.load import open_sealed, open_split
from pipelines.recipe import TrainRecipe
from student.balance import Balance, moments, phi_s, standardise
from student.given import (
    Given,
    check_same_samples,
    check_same_views,
    choose_teachers,
    ensemble_members,
    find_teachers,
    targets_of,
)
from student.objectives import OBJECTIVES
from student.objectives.weighted import Term, objective_options, parse_objective, term_needs
from student.targets import Targets

if TYPE_CHECKING:
    from featurecache.store.reader import Cache
    from student.targets.ensemble import How

__all__ = ["Taught", "open_teachers"]

_BALANCED = "embedding"
"""The output that has a scale of its own with each teacher; that of logits is part of what they say."""
_ROWS_AT_ONCE = 4096


@dataclass(frozen=True, slots=True)
class Taught:
    """What a student is taught, and by whom."""

    reader: CacheReader
    """Of the first cache, whose samples are shown."""
    given: tuple[Given, ...]
    digests: tuple[str, ...]
    """Of every cache."""
    ensemble: "How | None"
    members: tuple[str, ...]
    """Of the ensemble, by known names."""
    balance: str

    @property
    def is_several(self) -> bool:
        """Whether outputs are named after their teachers."""
        return bool(self.given[0].teacher)

    @property
    def plain(self) -> dict[str, OutputSpec]:
        """Outputs under plain names: those of the only teacher, or logits of an ensemble."""
        if not self.is_several:
            return self.given[0].specs
        return {"logits": self.specs[self.members[0]]} if self.ensemble else {}

    @property
    def specs(self) -> dict[str, OutputSpec]:
        """Every output by the name that the student knows it by."""
        return {name: spec for one in self.given for name, spec in one.specs.items()}

    @property
    def names(self) -> set[str]:
        """Outputs by their own names, whoever gave them."""
        return {output for one in self.given for output in one.outputs}

    def needed(self, objective: str) -> tuple[str, ...]:
        """Known names of what the terms need, as far as it is there."""
        wanted = {name for term in parse_objective(objective) for name in self._needed(term)}
        return tuple(name for name in {**self.plain, **self.specs} if name in wanted)

    def read(self, outputs: Sequence[str]) -> tuple[str, ...]:
        """Known names of what must be there for these outputs: of an ensemble, every member's."""
        is_ensemble = self.ensemble is not None and "logits" in outputs
        alone = [name for name in outputs if not (is_ensemble and name == "logits")]
        return tuple(dict.fromkeys([*alone, *(self.members if is_ensemble else ())]))

    def views(self, outputs: Sequence[str]) -> int:
        """How many views there are of all these outputs."""
        return min(one.reader.views(names) for one in self.given for names in self._stored(one, outputs))

    def check(self, outputs: Sequence[str], *, views: int) -> None:
        """Raises IdentityError where another teacher saw other samples, or other views of them."""
        used = [one for one in self.given if one.stored(self.read(outputs))]
        if len(self.given) > 1:
            check_same_samples(self.given, self.read(outputs))
        if views > 1:
            check_same_views([self.given[0], *(one for one in used if one is not self.given[0])])

    def targets(
        self, outputs: Sequence[str], objective: str, balances: "Mapping[str, Balance] | None" = None
    ) -> Targets:
        """What batches get. Raises UsageError where no one ensemble can serve all terms."""
        temperature = self._temperature(objective) if self.ensemble == "probabilities" else 1.0
        how, members = self.ensemble, self.members
        return targets_of(self.given, outputs, members=members, how=how, temperature=temperature, balances=balances)

    def balances(
        self, outputs: Sequence[str], rows: np.ndarray, *, views: int, device: torch.device
    ) -> dict[str, Balance]:
        """Of every embedding among these outputs, from these rows in all their views. Raises UsageError."""
        if self.balance == "none":
            return {}
        names = [name for name in outputs if name.rpartition("/")[2] == _BALANCED]
        if not names and not self.is_several:
            raise UsageError(f"--balance {self.balance} is for embeddings", hint="add an objective that needs them")
        whole = self.balance == "phi-s"
        make = phi_s if whole else standardise
        where = device if device.type == "cuda" else torch.device("cpu")  # not every device has float64
        plain = {name: targets_of(self.given, [name]) for name in names}
        return {
            name: make(moments(_batches(targets, name, rows, views, where), covariance=whole))
            for name, targets in plain.items()
        }

    def facts(self, outputs: Sequence[str]) -> Json:
        """{teacher: {output: what made it}} of these outputs."""
        read = self.read(outputs)
        return {
            one.teacher: {name.rpartition("/")[2]: one.reader.made_by(stored) for name, stored in found.items()}
            for one in self.given
            if (found := one.stored(read))
        }

    def sources(self, outputs: Sequence[str]) -> dict[str, tuple[CacheReader, str]]:
        """Known name to the reader that has it, and its name there."""
        read = self.read(outputs)
        return {name: (one.reader, stored) for one in self.given for name, stored in one.stored(read).items()}

    def recipes(self, outputs: Sequence[str]) -> dict[str, str]:
        """Known name to the recipe_id of the part that gives it."""
        return {name: reader.output_part(stored).recipe_id for name, (reader, stored) in self.sources(outputs).items()}

    def _needed(self, term: Term) -> list[str]:
        plain = _outputs_needed(term, self.plain)
        if not self.is_several or (not term.teacher and set(plain) <= self.plain.keys()):
            return plain
        asked = [(one, _outputs_needed(term, one.outputs)) for one in self.given if term.teacher in ("", one.teacher)]
        return [one.known_as(need) for one, needs in asked if set(needs) <= one.outputs.keys() for need in needs]

    def _temperature(self, objective: str) -> float:
        """The one temperature at which logits are softened: the mean of probabilities depends on it."""
        whole = [term for term in parse_objective(objective) if set(_outputs_needed(term, self.plain)) <= {"logits"}]
        terms = [term for term in whole if "logits" in OBJECTIVES.get(term.objective).needs]
        found = {
            float({**objective_options(term.objective), **term.options}.get("temperature", 1.0))
            for term in terms
            if not term.teacher
        }
        if len(found) > 1:
            numbers = " and ".join(f"{number:g}" for number in sorted(found))
            message = f"the mean of probabilities is another at each temperature, and the objective has {numbers}"
            raise UsageError(message, hint="give all terms one temperature, or average --ensemble logits")
        return found.pop() if found else 1.0

    def _stored(self, one: Given, outputs: Sequence[str]) -> "Iterator[list[str] | None]":
        """A teacher's outputs among these, if there are any; all of them where labels alone teach."""
        names = list(one.stored(self.read(outputs)).values())
        if names or not outputs:
            yield names or None


def _outputs_needed(term: Term, available: Collection[str]) -> list[str]:
    return [need for need in term_needs(term, available) if need != "labels"]


def open_teachers(recipe: TrainRecipe) -> "tuple[Cache, Taught]":
    """Open every cache of a recipe, and choose its teachers. Raises UsageError, IncompleteError, IdentityError."""
    opened = [open_sealed(path) for path in recipe.caches]
    readers = [open_split(cache, recipe.split) for cache, _ in opened]
    reader = readers[0]
    given = [Given("", reader, {name: name for name in reader.outputs})]
    if recipe.teachers or len(readers) > 1:
        given = choose_teachers(find_teachers(readers), recipe.teachers)
    if recipe.ensemble and len(given) == 1:
        raise UsageError("an ensemble needs several teachers", hint="choose them with --teachers or --cache")
    members = ensemble_members(given) if recipe.ensemble else []
    balance = recipe.balance or ("phi-s" if len(given) > 1 else "none")
    digests = tuple(digest for _, digest in opened)
    return opened[0][0], Taught(reader, tuple(given), digests, recipe.ensemble, tuple(members), balance)


def _batches(targets: Targets, name: str, rows: np.ndarray, views: int, device: torch.device) -> Iterator[Tensor]:
    for view in range(views):
        chunks = [rows[at : at + _ROWS_AT_ONCE] for at in range(0, rows.size, _ROWS_AT_ONCE)]
        shown = (np.full(len(chunk), view) for chunk in chunks)
        for batch in targets.gather(chunks, views=shown, device=device):
            values = batch[name]
            if not isinstance(values, Tensor) or values.dim() != 2:
                raise UsageError(f"{name} is not one vector for each sample, and cannot be balanced")
            yield values
