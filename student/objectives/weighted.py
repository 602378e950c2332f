"""Several objectives as one weighted sum, read from text such as `kl(temperature=2):1.0,align-uniform:1.0,ce`."""

import inspect
import math
import re
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple, TypeAlias, cast, get_args

from torch import Tensor, nn

from featurecache.errors import UnknownNameError, UsageError
from student.objectives import OBJECTIVES
from student.objectives.base import Batch, Dimensions, Objective

__all__ = [
    "Number",
    "Term",
    "Value",
    "WeightedSum",
    "make_objective",
    "objective_options",
    "option_text",
    "option_words",
    "parse_objective",
]

_BETWEEN_TERMS = re.compile(r",(?![^(]*\))")
_TERM = re.compile(r"\s*(?P<name>[^\s():,]+)\s*(?:\((?P<options>[^()]*)\))?\s*(?::(?P<weight>[^():]*))?")
_GRAMMAR = "write NAME, NAME:WEIGHT or NAME(OPTION=VALUE,...):WEIGHT, with commas between them"
_REMEDIES = {
    "embedding": "extract with `--outputs embedding`",
    "labels": "give data that has labels with `--data`",
    "logits": "add them with `fc probe --cache CACHE`, or extract `--outputs logits` of a teacher that classifies",
}

Number: TypeAlias = int | float
"""`bool` is an `int`."""
Value: TypeAlias = Number | str
"""The value of an option: a number, or a word where its type is a `Literal` of words."""


class Term(NamedTuple):
    """One objective of a sum."""

    name: str
    options: dict[str, Value]
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
        self.notes = _union(getattr(part, "notes", ()) for part in parts.values())
        """What the user should read before training."""

    def forward(self, student: Mapping[str, Tensor], batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted total, and each part's own value without weight or graph."""
        values = {name: part(student, batch) for name, part in self.parts.items()}
        total = sum(self.weights[name] * value for name, value in values.items())
        return total, {name: value.detach() for name, value in values.items()}


def make_objective(text: str, dimensions: Dimensions, available: Collection[str]) -> WeightedSum:
    """The objective that the text describes, for data with the `available` teacher outputs, "labels" among them.

    Raises UsageError where one needs more than is there, before anything is trained.
    """
    terms = parse_objective(text)
    for term in terms:
        _check_needs(term.name, available)
    parts = {term.name: OBJECTIVES.get(term.name)(dimensions, **term.options) for term in terms}
    return WeightedSum(parts, {term.name: term.weight for term in terms})


def parse_objective(text: str) -> list[Term]:
    """The terms of `NAME(OPTION=VALUE,...):WEIGHT,...` in order; a weight left out is 1. Raises UsageError."""
    terms = [_parse_term(part) for part in _BETWEEN_TERMS.split(text)]
    names = [term.name for term in terms]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"the objective {name!r} stands twice in {text!r}", hint="give it once, with one weight")
    if not any(term.weight for term in terms):
        raise UsageError(f"every weight in {text!r} is 0", hint="give at least one objective a weight above 0")
    return terms


def objective_options(name: str) -> dict[str, Value]:
    """An objective's options and their defaults. Raises UnknownNameError."""
    return {item.name: item.default for item in _parameters(name)}


def option_words(objective: str, option: str) -> tuple[str, ...]:
    """The words that an option chooses among; none for one that is a number. Raises UnknownNameError."""
    return next(get_args(item.annotation) for item in _parameters(objective) if item.name == option)


def _parameters(objective: str) -> list[inspect.Parameter]:
    parameters = inspect.signature(OBJECTIVES.get(objective)).parameters.values()
    return [item for item in parameters if item.kind is item.KEYWORD_ONLY]


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


def _parse_options(objective: str, text: str, defaults: Mapping[str, Value]) -> dict[str, Value]:
    options: dict[str, Value] = {}
    for item in filter(str.strip, text.split(",")):
        name, equals, value = (word.strip() for word in item.partition("="))
        if not equals:
            raise UsageError(f"{objective}: cannot read the option {name!r}", hint=_GRAMMAR)
        if name not in defaults:
            known = ", ".join(f"{option}={option_text(default)}" for option, default in defaults.items())
            hint = f"its options and their defaults: {known}" if known else "it has none"
            raise UsageError(f"the objective {objective!r} has no option {name!r}", hint=hint)
        if name in options:
            raise UsageError(f"{objective}: the option {name!r} stands twice", hint="give it once")
        options[name] = _value(objective, name, value, defaults[name])
    return options


def option_text(value: Value) -> str:
    """As it is written: "4", "0.07", "bucket"."""
    return value if isinstance(value, str) else f"{value:g}"


def _value(objective: str, option: str, text: str, default: Value) -> Value:
    if not isinstance(default, str):
        return _number(f"{objective}: {option}", text, default)
    words = option_words(objective, option)
    if text not in words:
        raise UnknownNameError(f"{option} of {objective}", text, words)
    return text


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


def _check_needs(name: str, available: Collection[str]) -> None:
    missing = [need for need in OBJECTIVES.get(name).needs if need not in available]
    if missing:
        present = ", ".join(sorted(available)) or "nothing"
        raise UsageError(
            f"the objective {name!r} needs {' and '.join(missing)}; there is {present}",
            hint="; ".join(_REMEDIES.get(need, f"extract with `--outputs {need}`") for need in missing),
        )


def _union(groups: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for group in groups for name in group))
