"""Several objectives as one weighted sum, read from text such as `kl(temperature=2):1.0,align-uniform:1.0,ce`.

With several teachers a term counts as the mean over those that it can learn from, or `cosine@TEACHER:1.0` names one.
"""

import inspect
import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple, TypeAlias, cast, get_args

from torch import Tensor, nn

from featurecache.errors import UnknownNameError, UsageError
from featurecache.layers import is_layer
from student.objectives import OBJECTIVES
from student.objectives.base import Batch, Dimensions, Objective
from student.objectives.tokens import filled

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
    "term_needs",
]

_BETWEEN_TERMS = re.compile(r",(?![^(]*\))")
_TERM = re.compile(r"\s*(?P<name>[^\s():,]+)\s*(?:\((?P<options>[^()]*)\))?\s*(?::(?P<weight>[^():]*))?")
_GRAMMAR = "write NAME, NAME:WEIGHT or NAME(OPTION=VALUE,...):WEIGHT, with commas between them"
_AT_TEACHER = re.compile(r"@[^\s():,@]+")
_REMEDIES = {
    "labels": "give data that has labels with `--data`",
    "logits": "add them with `fc probe --cache {cache}`, or extract `--outputs logits` of a teacher that classifies",
}

Number: TypeAlias = int | float
"""`bool` is an `int`."""
Value: TypeAlias = Number | str
"""The value of an option: a number, or a word where its type is a `Literal` of words."""


class Term(NamedTuple):
    """One objective of a sum."""

    name: str
    """The objective's, or NAME@TEACHER."""
    options: dict[str, Value]
    weight: float

    @property
    def objective(self) -> str:
        """The objective's own name."""
        return self.name.partition("@")[0]

    @property
    def teacher(self) -> str:
        """The one teacher that it is about; empty for all that it can learn from."""
        return self.name.partition("@")[2]


class WeightedSum(nn.Module):
    """sum_k weight_k * objective_k, for objectives by name; all of them read the same batch and the same bank.

    An objective "NAME@TEACHER" is shown the outputs of that teacher, "TEACHER/embedding", under their plain names, and
    the heads that learn from them. It knows nothing of others.
    """

    def __init__(self, parts: Mapping[str, Objective], weights: Mapping[str, float]) -> None:
        super().__init__()
        self.parts = nn.ModuleDict(cast(Mapping[str, nn.Module], parts))
        self.weights = {name: weights[name] for name in parts}
        self.needs = _union(_named(part.needs, name) for name, part in parts.items())
        self.heads = _union(_named_heads(part.heads, name) for name, part in parts.items())
        self.bank_rows = max(part.bank_rows for part in parts.values())
        self.bank_outputs = _union(_named(part.needs, name) for name, part in parts.items() if part.bank_rows)
        """What of other rows the parts read."""
        self.notes = _union(getattr(part, "notes", ()) for part in parts.values())
        """What the user should read before training."""

    def forward(self, student: Mapping[str, Tensor], batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted total, and each part's own value without weight or graph."""
        values = {name: self._value(name, part, student, batch) for name, part in self.parts.items()}
        total = sum(self.weights[name] * value for name, value in values.items())
        return total, {name: value.detach() for name, value in values.items()}

    def _value(self, name: str, part: nn.Module, student: Mapping[str, Tensor], batch: Batch) -> Any:
        teacher = name.partition("@")[2]
        if not teacher:
            return part(student, batch)
        shown = replace(batch, targets=_plain(batch.targets, teacher), bank=_plain(batch.bank, teacher))
        return part(_plain(student, teacher), shown)


def make_objective(
    text: str,
    dimensions: Dimensions,
    available: Collection[str],
    teachers: Mapping[str, Dimensions] | None = None,
    *,
    cache: str = "CACHE",
) -> WeightedSum:
    """The objective that the text describes, for data with the `available` teacher outputs, "labels" among them.

    `teachers` has what objectives are told of each of several; their outputs are those with a width. A term that the
    `available` outputs do not serve is one for each teacher that does, and its weight is shared between them. `cache`
    is what the cache is called in what is said about it. Raises UsageError where one needs more than is there, before
    anything is trained.
    """
    parts: dict[str, Objective] = {}
    weights: dict[str, float] = {}
    seen: list[str] = []
    for term in parse_objective(text):
        seen.append(term.name)
        count = seen.count(term.name)  # an objective on other layers stands again
        own = term.objective if count == 1 else f"{term.objective}-{count}"
        chosen = _chosen(term, available, teachers or {}, cache)
        for teacher in chosen:
            name = f"{own}@{teacher}" if teacher else own
            if name in parts:
                raise UsageError(f"the objective {name!r} stands twice in {text!r}", hint="give it once")
            told = (teachers or {})[teacher] if teacher else dimensions
            parts[name] = OBJECTIVES.get(term.objective)(told, **term.options)
            weights[name] = term.weight / len(chosen)
    return WeightedSum(parts, weights)


def term_needs(term: Term, available: Collection[str]) -> tuple[str, ...]:
    """What a term needs of the `available` teacher outputs: patterns are filled in with its options."""
    options = {**objective_options(term.objective), **term.options}
    return tuple(filled(need, options, available) for need in OBJECTIVES.get(term.objective).needs)


def parse_objective(text: str) -> list[Term]:
    """The terms of `NAME(OPTION=VALUE,...):WEIGHT,...` in order; a weight left out is 1. Raises UsageError."""
    terms = [_parse_term(part) for part in _BETWEEN_TERMS.split(text)]
    for number, term in enumerate(terms):
        if any(other.name == term.name and not _on_other_layers(term, other) for other in terms[:number]):
            message = f"the objective {term.name!r} stands twice in {text!r}"
            raise UsageError(message, hint="give it once, with one weight")
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
    objective, teacher = name.partition("@")[0], name[len(name.partition("@")[0]) :]
    if teacher and not _AT_TEACHER.fullmatch(teacher):
        raise UsageError(f"cannot read the objective {text.strip()!r}", hint="write NAME@TEACHER")
    options = _parse_options(objective, match["options"] or "", objective_options(objective))
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


def _chosen(term: Term, available: Collection[str], teachers: Mapping[str, Dimensions], cache: str) -> list[str]:
    """The teachers that a term is about; "" for what is there under plain names. Raises UsageError."""
    if term.teacher and term.teacher not in teachers:
        if not teachers:
            message = f"{term.name!r} names a teacher, and there is one only"
            raise UsageError(message, hint=f"write {term.objective}, or choose several with --teachers")
        raise UnknownNameError("teacher of this run", term.teacher, teachers)
    if not term.teacher and (not teachers or not _missing(term, available)):
        _check_needs(term, available, cache)
        return [""]
    labels = {"labels"} & set(available)
    offers = {name: {*told.targets, *labels} for name, told in teachers.items()}
    if term.teacher:
        _check_needs(term, offers[term.teacher], cache)
        return [term.teacher]
    serving = [name for name, offered in offers.items() if not _missing(term, offered)]
    if not serving:
        _check_needs(term, set.union(*offers.values()), cache)
        needed = " and ".join(term_needs(term, ()))
        raise UsageError(f"the objective {term.objective!r} needs {needed} of one teacher, and none gave all of it")
    return serving


def _missing(term: Term, available: Collection[str]) -> list[str]:
    return [need for need in term_needs(term, available) if need not in available]


def _check_needs(term: Term, available: Collection[str], cache: str) -> None:
    missing = _missing(term, available)
    if missing:
        present = ", ".join(sorted(available)) or "nothing"
        usual = "add it with `fc extend {cache} --outputs {need}`"
        remedies = (_REMEDIES.get(need, usual).format(cache=cache, need=need) for need in missing)
        raise UsageError(
            f"the objective {term.name!r} needs {' and '.join(missing)}; there is {present}", hint="; ".join(remedies)
        )


def _named(names: Iterable[str], part: str) -> tuple[str, ...]:
    """Outputs or heads of a part of the sum by the names that they have among those of all teachers."""
    teacher = part.partition("@")[2]
    return tuple(f"{teacher}/{name}" if teacher and name != "labels" else name for name in names)


def _named_heads(names: Iterable[str], part: str) -> tuple[str, ...]:
    """The same of heads; the student's layers are no teacher's."""
    return tuple(name if is_layer(name) else _named((name,), part)[0] for name in names)


def _plain(values: Mapping[str, Any], teacher: str) -> dict[str, Any]:
    """What is one teacher's by its plain name, with what is no teacher's at all."""
    prefix = f"{teacher}/"
    shared = {name: value for name, value in values.items() if "/" not in name}
    return shared | {name[len(prefix) :]: value for name, value in values.items() if name.startswith(prefix)}


def _on_other_layers(term: Term, other: Term) -> bool:
    """Whether two terms of one objective are on layers of their own."""
    has_layers = any("{" in need for need in OBJECTIVES.get(term.objective).needs)
    return has_layers and term.options != other.options


def _union(groups: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for group in groups for name in group))
