"""What a recipe comes to: stages, each with all that decides what comes out of it; equal ones are run once."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from featurecache.errors import UsageError
from featurecache.fingerprint import hash_json
from featurecache.types import Json
from pipelines.recipes.contents import file_hash
from pipelines.recipes.recipe import Recipe, Sections

__all__ = ["Case", "Chain", "Stage", "plan_cases"]

_ADAPTED = ("probe", "fit", "none")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One piece of work: a function of its settings and of what the stages before it left."""

    name: str
    """The section of the recipe that it is from, or what is done beside those."""
    does: str
    """The kind of work."""
    settings: Json
    """{name: value}: everything that decides what comes out, what is before it excepted."""
    before: Mapping[str, "Stage"] = field(default_factory=dict)
    """By what they are to it: "tokenizer", "cache", "start"."""
    updates: int | None = None
    """Optimizer steps of a student; None for what is paid once for all of them."""

    @property
    def folder(self) -> str:
        """Its name and a hash of what it is: equal stages share it, whatever case and arm they are of."""
        return f"{self.name}-{hash_json(self._identity())[:10]}"

    def _identity(self) -> Json:
        before = {role: stage.folder for role, stage in self.before.items()}
        return {"does": self.does, "settings": self.settings, "before": before, "updates": self.updates}


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """The life of one student."""

    arm: str
    seed: int
    stages: tuple[Stage, ...]
    scores: Stage
    """What judges it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One combination of what is varied."""

    varied: Json
    sections: Sections
    chains: tuple[Chain, ...]

    def in_order(self) -> list[Stage]:
        """Every stage once, none before what it needs."""
        found: dict[str, Stage] = {}

        def add(stage: Stage) -> None:
            for other in stage.before.values():
                add(other)
            found.setdefault(stage.folder, stage)

        for chain in self.chains:
            add(chain.scores)
        return list(found.values())


def plan_cases(recipe: Recipe, data: str) -> list[Case]:
    """`data` is the fingerprint of what is learned from. Raises UsageError."""
    return [_plan_case(varied, sections, data) for varied, sections in recipe.cases()]


def _plan_case(varied: Json, sections: Sections, data: str) -> Case:
    run = sections["run"]
    common = {"fingerprint": data, "limit": run.get("limit", 0)}
    tokenizer = _tokenizer(sections, common)
    cache = _cache(sections, common, tokenizer)
    chains = [
        _chain(arm, seed, sections, common, tokenizer=tokenizer, cache=cache)
        for seed in run["seeds"]
        for arm in run["arms"]
    ]
    return Case(varied=varied, sections=sections, chains=tuple(chains))


def _tokenizer(sections: Sections, common: Json) -> Stage | None:
    if "tokenizer" not in sections:
        return None
    settings = {**common, **sections["tokenizer"], "texts": sections.get("pretrain", {}).get("data", "")}
    if settings["of"] == "published":
        settings["student"] = sections["run"]["student"]
    return _stage("tokenizer", settings, {})


def _cache(sections: Sections, common: Json, tokenizer: Stage | None) -> Stage:
    """The stage that leaves the cache to learn from, behind all that it takes."""
    section, run = dict(sections["teacher"]), sections["run"]
    adapt, labels = section["adapt"], {"labels": run.get("labels", 0)}
    if adapt not in _ADAPTED:
        raise UsageError(f"teacher.adapt is {adapt!r}", hint=f"write {', '.join(_ADAPTED)}")
    own = {key: section[key] for key in ("model", "max_length", "batch_size")}
    if section["cache"] and (section["probabilities"] or adapt == "fit"):
        other = "teacher.probabilities" if section["probabilities"] else "teacher.adapt=fit"
        raise UsageError(f"teacher.cache cannot be used with {other}", hint="leave one of them out")
    if section["cache"] and run.get("limit"):
        raise UsageError("teacher.cache cannot be used with run.limit", hint="--set run.limit=0 uses all of its rows")
    if section["probabilities"]:
        file = section["probabilities"]
        settings = {**common, "file": file, "sha256": _file_hash(file), "max_length": run["max_length"]}
        return _stage("import", {"does": "import", **settings}, {"tokenizer": tokenizer})
    if section["cache"]:
        standing = _stage("cache", {"does": "cache", "path": section["cache"]}, {})
        return _probe(standing, labels) if adapt == "probe" else standing
    if adapt == "fit":
        tuned = {key: section[key] for key in ("epochs", "learning_rate")}
        fitted = _stage("fit-teacher", {"does": "fit-teacher", **common, **own, **tuned, **labels}, {})
        settings = {"does": "extract", **common, **own, "model": "", "outputs": ["logits"]}
        return _stage("extract", settings, {"teacher": fitted})
    outputs = ["embedding"] if adapt == "probe" else ["logits"]
    extracted = _stage("extract", {"does": "extract", **common, **own, "outputs": outputs}, {})
    return _probe(extracted, labels) if adapt == "probe" else extracted


def _file_hash(file: str) -> str:
    try:
        return file_hash(Path(file))
    except OSError as error:
        raise UsageError(f"cannot read teacher.probabilities {file}: {error.strerror or error}") from None


def _probe(cache: Stage, labels: Json) -> Stage:
    return _stage("probe", {"does": "probe", **labels}, {"cache": cache})


def _chain(arm: str, seed: int, sections: Sections, common: Json, *, tokenizer: Stage | None, cache: Stage) -> Chain:
    run = sections["run"]
    stages: list[Stage] = []
    for name, updates in _updates(sections, arm).items():
        settings = {
            **common,
            **sections[name],
            "student": run["student"],
            "max_length": run["max_length"],
            "seed": seed,
        }
        before = {"tokenizer": tokenizer}
        if settings["does"] != "pretrain":  # which is shared by those who differ in teacher or labels
            settings |= {"labels": run.get("labels", 0)}
            before |= {"cache": cache}
        before |= {"start": stages[-1] if stages else None}
        stages.append(replace(_stage(name, settings, before), updates=updates))
    scores = _stage("evaluate", {"does": "evaluate", **common}, {"student": stages[-1], "cache": cache})
    return Chain(arm=arm, seed=seed, stages=tuple(stages), scores=scores)


def _updates(sections: Sections, arm: str) -> dict[str, int]:
    """Steps of each stage. They add up to run.updates, but for stages that have updates of their own; one that takes a
    model that is trained already makes none."""
    shares: Json = sections["arms"][arm]
    apart = {
        name: 0 if sections[name].get("init_from") else sections[name]["updates"]
        for name in shares
        if sections[name].get("init_from") or sections[name].get("updates")
    }
    counted = {name: share for name, share in shares.items() if name not in apart}
    found, reached, so_far = dict.fromkeys(shares, 0) | apart, 0, 0.0
    for name, share in counted.items():
        so_far += share / sum(counted.values())
        found[name] = round(so_far * sections["run"]["updates"]) - reached
        reached += found[name]
    return found


def _stage(name: str, settings: Json, before: Mapping[str, Stage | None]) -> Stage:
    does = settings["does"]
    rest = {key: value for key, value in settings.items() if key != "does"}
    return Stage(
        name=name, does=does, settings=rest, before={role: stage for role, stage in before.items() if stage is not None}
    )
