"""Several objectives as one weighted sum, read from text such as `kl(temperature=2):1.0,align-uniform:1.0,ce`."""

import inspect
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple, TypeAlias, cast

from torch import Tensor, nn

from featurecache.errors import UsageError
from student.objectives import OBJECTIVES
from student.objectives.base import Batch, Dimensions, Objective
from student.objectives.tokens import filled

__all__ = ["Number", "Term", "WeightedSum", "make_objective", "objective_options", "parse_objective", "term_needs"]

_BETWEEN_TERMS = re.compile(r",(?![^(]*\))")
_TERM = re.compile(r"\s*(?P<name>[^\s():,]+)\s*(?:\((?P<options>[^()]*)\))?\s*(?::(?P<weight>[^():]*))?")
_GRAMMAR = "write NAME, NAME:WEIGHT or NAME(OPTION=NUMBER,...):WEIGHT, with commas between them"
_REMEDIES = {
    "embedding": "extract with `--outputs embedding`",
    "labels": "give data that has labels with `--data`",
    "logits": "add them with `fc probe --cache CACHE`, or extract `--outputs logits` of a teacher that classifies",
}

Number: TypeAlias = int | float
"""The value of an option; `bool` is an `int`."""


class Term(NamedTuple):
    """One objective of a sum."""

    name: str
    options: dict[str, Number]
    weight: float


class WeightedSum(nn.Module):
    """sum_k weight_k * objective_k, for objectives by name; all of them read the same batch and the same bank."""

    def __init__(self, parts: Mapping[str, Objective], weights: Mapping[str, float]) -> None:
        super().__init__()
        self.parts = nn.ModuleDict(cast(Mapping[str, nn.Module], parts))
        self.weights = {name: weights[name] for name in parts}
        self.needs = _union(part.needs for part in parts.values())
        self.heads = _union(part.heads for part in parts.values())
        self.bank_rows = max(part.bank_rows for part in parts.values())

    def forward(self, student: Mapping[str, Tensor], batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted total, and each part's own value without weight or graph."""
        values = {name: part(student, batch) for name, part in self.parts.items()}
        total = sum(self.weights[name] * value for name, value in values.items())
        return total, {name: value.detach() for name, value in values.items()}


def make_objective(
    text: str, dimensions: Dimensions, available: Collection[str], *, cache: str = "CACHE"
) -> WeightedSum:
    """The objective that the text describes, for data with the `available` teacher outputs, "labels" among them.

    `cache` is what the cache is called in what is said about it. Raises UsageError where one needs more than is there,
    before anything is trained.
    """
    terms = parse_objective(text)
    for term in terms:
        _check_needs(term, available, cache)
    names = _part_names(terms)
    parts = {
        name: OBJECTIVES.get(term.name)(dimensions, **term.options) for name, term in zip(names, terms, strict=True)
    }
    return WeightedSum(parts, {name: term.weight for name, term in zip(names, terms, strict=True)})


def term_needs(term: Term, available: Collection[str]) -> tuple[str, ...]:
    """What a term needs of the `available` teacher outputs: patterns are filled in with its options."""
    options = {**objective_options(term.name), **term.options}
    return tuple(filled(need, options, available) for need in OBJECTIVES.get(term.name).needs)


def parse_objective(text: str) -> list[Term]:
    """The terms of `NAME(OPTION=NUMBER,...):WEIGHT,...` in order; a weight left out is 1. Raises UsageError."""
    terms = [_parse_term(part) for part in _BETWEEN_TERMS.split(text)]
    for number, term in enumerate(terms):
        if any(other.name == term.name and not _on_other_layers(term, other) for other in terms[:number]):
            message = f"the objective {term.name!r} stands twice in {text!r}"
            raise UsageError(message, hint="give it once, with one weight")
    if not any(term.weight for term in terms):
        raise UsageError(f"every weight in {text!r} is 0", hint="give at least one objective a weight above 0")
    return terms


def objective_options(name: str) -> dict[str, Number]:
    """An objective's options and their defaults. Raises UnknownNameError."""
    parameters = inspect.signature(OBJECTIVES.get(name)).parameters.values()
    return {item.name: item.default for item in parameters if item.kind is item.KEYWORD_ONLY}


def _parse_term(text: str) -> Term:
    match = _TERM.fullmatch(text)
    if match is None:
        raise UsageError(f"cannot read the objective {text.strip()!r}", hint=_GRAMMAR)
    name, weight = match["name"], match["weight"]
    options = _parse_options(name, match["options"] or "", objective_options(name))
    number = 1.0 if weight is None else _number(f"the weight of {name}", weight, 1.0)
    if number < 0:
        raise UsageError(f"the weight of {name} is {number:g}", hint="a weight is 0 or more")
    return Term(name, options, number)


def _parse_options(objective: str, text: str, defaults: Mapping[str, Number]) -> dict[str, Number]:
    options: dict[str, Number] = {}
    for item in filter(str.strip, text.split(",")):
        name, equals, value = (word.strip() for word in item.partition("="))
        if not equals:
            raise UsageError(f"{objective}: cannot read the option {name!r}", hint=_GRAMMAR)
        if name not in defaults:
            known = ", ".join(f"{option}={default:g}" for option, default in defaults.items())
            hint = f"its options and their defaults: {known}" if known else "it has none"
            raise UsageError(f"the objective {objective!r} has no option {name!r}", hint=hint)
        if name in options:
            raise UsageError(f"{objective}: the option {name!r} stands twice", hint="give it once")
        options[name] = _number(f"{objective}: {name}", value, defaults[name])
    return options


def _number(what: str, text: str, default: Number) -> Number:
    """The number in the text, of the type of the default: bool (written 0 or 1), int or float."""
    kind = "0 or 1" if isinstance(default, bool) else "a whole number" if isinstance(default, int) else "a number"
    try:
        number = type(default)(int(text)) if isinstance(default, int) else float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or (isinstance(default, bool) and text.strip() not in ("0", "1")):
        raise UsageError(f"{what} is {text.strip()!r}", hint=f"write {kind}")
    return number


def _check_needs(term: Term, available: Collection[str], cache: str) -> None:
    missing = [need for need in term_needs(term, available) if need not in available]
    if missing:
        present = ", ".join(sorted(available)) or "nothing"
        remedies = (_REMEDIES.get(need, f"add it with `fc extend {cache} --outputs {need}`") for need in missing)
        raise UsageError(
            f"the objective {term.name!r} needs {' and '.join(missing)}; there is {present}", hint="; ".join(remedies)
        )


def _on_other_layers(term: Term, other: Term) -> bool:
    """Whether two terms of one objective are on layers of their own."""
    has_layers = any("{" in need for need in OBJECTIVES.get(term.name).needs)
    return has_layers and term.options != other.options


def _part_names(terms: Sequence[Term]) -> list[str]:
    """A name for each term: the objective's, with a number behind it where that stands again."""
    names: list[str] = []
    for term in terms:
        count = 1 + sum(other.name == term.name for other in terms[: len(names)])
        names.append(term.name if count == 1 else f"{term.name}-{count}")
    return names


def _union(groups: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for group in groups for name in group))
