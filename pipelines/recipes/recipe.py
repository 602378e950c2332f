"""A recipe: what its file says, at one scale, with what was set and what is varied."""

import difflib
import itertools
import math
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from featurecache.errors import UnknownNameError, UsageError
from featurecache.types import Json

__all__ = ["Recipe", "Sections", "known_recipes", "read_recipe"]

Sections: TypeAlias = Mapping[str, Mapping[str, Json]]
"""Settings by section and key."""

_FOLDER = Path(__file__).parent
_LARGEST_FILE = 2**16
_OPEN = "arms"
"""The section to which keys may be added."""
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
"""Of a section: folders are named after stages."""
_LEARNING = ("batch_size", "learning_rate", "weight_decay", "warmup")
_NEEDED = {
    "run": ("student", "updates", "seeds", "arms", "max_length"),
    "tokenizer": ("does", "of", "vocabulary"),
    "teacher": ("model", "adapt", "probabilities", "cache", "max_length", "batch_size", "epochs", "learning_rate"),
    "pretrain": ("data", "init_from", *_LEARNING),
    "train-student": ("objective", *_LEARNING),
}
"""Settings without which a section is of no use, by what it does, or by its name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Stages and their settings; every section but `run` and `arms` is a stage, and `does` says of which kind."""

    name: str
    about: str
    paper: str
    scale: str
    sections: Sections
    varied: Mapping[str, tuple[Json, ...]]
    """Values by "section.key"; every combination of them is a case."""

    def cases(self) -> Iterator[tuple[Json, Sections]]:
        """What is varied of each case, {"section.key": value}, and all of its settings."""
        for values in itertools.product(*self.varied.values()):
            chosen = dict(zip(self.varied, values, strict=True))
            yield chosen, _changed(self.sections, chosen)


def known_recipes() -> dict[str, str]:
    """Name to what it is about, of the recipes that ship with the project."""
    return {file.stem: str(_load(file).get("about", "")) for file in sorted(_FOLDER.glob("*.toml"))}


def read_recipe(name: str, *, scale: str = "small", changes: Sequence[str] = (), varied: Sequence[str] = ()) -> Recipe:
    """The recipe of that name, or in that .toml file, at a scale.

    `changes` are "section.key=value", `varied` are "section.key=value,value"; values are written as in TOML, and texts
    need no quotes. Raises UsageError, UnknownNameError.
    """
    file = Path(name) if name.endswith(".toml") else _FOLDER / f"{name}.toml"
    if not name.endswith(".toml") and (name not in known_recipes()):
        raise UnknownNameError("recipe", name, known_recipes())
    whole = _load(file)
    about, paper = str(whole.pop("about", "")), str(whole.pop("paper", ""))
    scales = whole.pop("scales", {})
    _check_file(file, whole, scales)
    if scale not in scales:
        raise UnknownNameError("scale of this recipe", scale, scales)
    at_scale = {f"{section}.{key}": value for section, keys in scales[scale].items() for key, value in keys.items()}
    given = dict(_assignment(text, "--set") for text in changes)
    sections = _changed(_changed(whole, at_scale), given)
    model = sections["teacher"].get("model")
    if str(model).startswith("torch:") and "teacher.model" not in given:
        hint = f"if you trust it, name it yourself: --set teacher.model={model}"
        raise UsageError(f"{file} names Python code as its teacher, {model!r}, and a recipe runs nothing", hint=hint)
    values: dict[str, tuple[Json, ...]] = {}
    for text in varied:
        key, value = _assignment(text, "--vary", several=True)
        if len(value) < 2 or any(value.count(one) > 1 for one in value):
            raise UsageError(f"--vary {text}: it needs two different values or more", hint="--set gives it one")
        if key in values:
            raise UsageError(f"--vary {key} is given twice", hint="give it all values at once")
        values[key] = tuple(value)
    recipe = Recipe(name=file.stem, about=about, paper=paper, scale=scale, sections=sections, varied=values)
    for _, case in recipe.cases():
        _check_case(case)
    return recipe


def _load(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as stream:
            content = stream.read(_LARGEST_FILE + 1)
        if len(content) > _LARGEST_FILE:
            raise UsageError(f"{file} is too large to be a recipe")
        return tomllib.loads(content.decode())
    except OSError as error:
        raise UsageError(f"cannot read the recipe {file}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{file} is not TOML: {error}") from None


def _check_file(file: Path, sections: Json, scales: Json) -> None:
    tables = [*sections.values(), scales]
    if isinstance(scales, dict):
        tables += scales.values()
        tables += [keys for scale in scales.values() if isinstance(scale, dict) for keys in scale.values()]
    if not all(isinstance(table, dict) for table in tables) or not {"run", _OPEN, "teacher"} <= sections.keys():
        hint = "it has sections, [run], [arms] and [teacher] among them; docs/recipes.md"
        raise UsageError(f"{file} is no recipe", hint=hint)
    if wrong := [name for name in sections if not _NAME.fullmatch(name)]:
        hint = "a name begins with a letter, and has letters, digits, - and _"
        raise UsageError(f"{file} has a section {wrong[0]!r}", hint=hint)


def _assignment(text: str, option: str, *, several: bool = False) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    section, dot, name = key.strip().partition(".")
    if not (equals and dot and section and name):
        raise UsageError(f"cannot read {option} {text}", hint=f"write {option} SECTION.KEY=VALUE")
    if not several:
        return f"{section}.{name}", _value(value.strip())
    whole = _toml(f"[{value}]")
    values = [_value(one.strip()) for one in value.split(",")] if whole is None else whole
    return f"{section}.{name}", values


def _value(text: str) -> Any:
    found = _toml(text)
    return text if found is None else found


def _toml(text: str) -> Any:
    """The value that a text is in TOML; None where it is none, and means itself."""
    try:
        return tomllib.loads(f"value = {text}")["value"] if "\n" not in text else None
    except (ValueError, RecursionError):
        return None


def _changed(sections: Sections, changes: Mapping[str, Any]) -> Sections:
    """With other values of keys that there are, of the same kind. Raises UnknownNameError, UsageError."""
    found = {name: dict(keys) for name, keys in sections.items()}
    for place, value in changes.items():
        section, _, key = place.partition(".")
        if section not in found:
            raise UnknownNameError("section of this recipe", section, found)
        if key not in found[section] and section != _OPEN:
            raise UnknownNameError(f"setting of {section}", key, found[section])
        found[section][key] = value if section == _OPEN else _of_kind(place, value, found[section][key])
    return found


def _of_kind(place: str, value: Any, standing: Any) -> Any:
    if isinstance(standing, float) and type(value) is int:
        return float(value)
    if isinstance(standing, list) and not isinstance(value, list | dict):  # basic,PD as well as ["basic", "PD"]
        return [_value(one.strip()) for one in str(value).split(",")]
    if isinstance(standing, str) and not isinstance(value, str | list | dict):
        value = str(value)
    if type(value) is not type(standing):
        kinds = {int: "a whole number", float: "a number", str: "a text", list: "a list", bool: "true or false"}
        raise UsageError(f"{place} cannot be {value!r}", hint=f"it is {kinds.get(type(standing), 'a table')}")
    return value


def _check_case(sections: Sections) -> None:
    for name, keys in sections.items():
        needed = _NEEDED.get(str(keys.get("does")), _NEEDED.get(name, ()))
        if lacking := [key for key in needed if key not in keys]:
            raise UsageError(f"the recipe has no {name}.{lacking[0]}")
        for key, value in keys.items():
            least = 1 if key == "batch_size" else 0
            if isinstance(value, int | float) and not least <= value < math.inf:
                raise UsageError(f"{name}.{key} is {value}", hint=f"it is {least} or above, and finite")
    run, arms = sections["run"], sections[_OPEN]
    for key in ("updates", "seeds", "arms", "student"):
        if not run[key]:
            raise UsageError(f"the recipe has no run.{key}")
    if not all(type(seed) is int and 0 <= seed < 2**63 for seed in run["seeds"]):
        raise UsageError(f"run.seeds are {run['seeds']}", hint="each is a whole number from 0 to below 2**63")
    for arm in run["arms"]:
        if not isinstance(arm, str) or arm not in arms:
            raise UnknownNameError("arm of this recipe", str(arm), arms)
        _check_arm(arm, arms[arm], sections)
    if len(set(run["seeds"])) < len(run["seeds"]) or len(set(run["arms"])) < len(run["arms"]):
        raise UsageError("each seed and each arm is given once")
    if run.get("keep") not in arms:
        raise UnknownNameError("arm to keep a student of", str(run.get("keep")), arms)


def _check_arm(arm: str, shares: Json, sections: Sections) -> None:
    if not isinstance(shares, dict) or not shares:
        raise UsageError(f"the arm {arm} has no stages", hint="write {pretrain = 0.5, distil = 0.5}")
    stages = [name for name in sections if name not in ("run", _OPEN)]
    for stage in shares:
        if stage not in stages:
            near = difflib.get_close_matches(stage, stages, n=1) or stages
            raise UnknownNameError(f"stage of the arm {arm}", stage, near)
    *before, last = [sections[stage].get("does") for stage in shares]
    if last != "train-student":
        raise UsageError(f"the arm {arm} does not end with a student of this task", hint="add distil or finetune")
    if any(does != "train-student" for does in (before[1:] if before[:1] == ["pretrain"] else before)):
        hint = "pre-training comes first if at all, then what trains students of the task"
        raise UsageError(f"the arm {arm} cannot have the stages {', '.join(shares)}", hint=hint)
    numbers = list(shares.values())
    if not all(isinstance(share, int | float) and share > 0 for share in numbers) or abs(sum(numbers) - 1) > 1e-6:
        raise UsageError(f"the shares of the arm {arm} are {numbers}", hint="each is above 0, and their sum is 1")
    if sections["run"]["updates"] * min(numbers) < 1:
        raise UsageError(f"a stage of the arm {arm} has no update at all", hint="raise run.updates")
