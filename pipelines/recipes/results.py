"""What came of a recipe, as plain facts: scores by case, arm and seed, differences paired by seed, and what it cost."""

import math
from collections.abc import Mapping, Sequence

from featurecache import __version__
from featurecache.types import Json
from pipelines.recipes.plan import Case, Chain, Stage
from pipelines.recipes.recipe import Recipe

__all__ = ["results_of"]

_SCORES = ("accuracy", "agreement", "kl")


def results_of(recipe: Recipe, cases: Sequence[Case], records: Mapping[str, Json], *, command: str) -> Json:
    """`records` has {"seconds", "result"} by the folders of stages. Accuracies and agreements are parts of 1, KL is in
    nats; a difference is an arm's accuracy less that of an arm before it, with the same seed."""
    kept = _kept(recipe, cases[0], records)
    split = _scores(cases[0].chains[0], records)["split"]
    return {
        "version": 1,
        "featurecache": __version__,
        "recipe": recipe.name,
        "about": recipe.about,
        "paper": recipe.paper,
        "scale": recipe.scale,
        "command": command,
        "settings": {name: dict(keys) for name, keys in recipe.sections.items()},
        "split": "train, its validation part" if split == "train" else split,  # where there is no test or val
        "cases": [_case(case, records) for case in cases],
        "cost": _cost(cases, records),
        "student": "student",
        "kept": {"arm": kept.arm, "seed": kept.seed, "run": _place(kept.stages[-1])},
    }


def _case(case: Case, records: Mapping[str, Json]) -> Json:
    arms = [_arm(arm, case, records) for arm in case.sections["run"]["arms"]]
    scores = [_scores(chain, records) for chain in case.chains]
    accuracies = [score["teacher_accuracy"] for score in scores if score["teacher_accuracy"] is not None]
    return {
        "settings": case.varied,
        "teacher": {
            "name": scores[0]["teacher"],
            "accuracy": accuracies[0] if accuracies else None,
            "rows": scores[0]["rows"],
        },
        "arms": arms,
        "differences": [_difference(arm, against) for number, against in enumerate(arms) for arm in arms[number + 1 :]],
    }


def _arm(arm: str, case: Case, records: Mapping[str, Json]) -> Json:
    chains = [chain for chain in case.chains if chain.arm == arm]
    scores = [_scores(chain, records) for chain in chains]
    return {
        "arm": arm,
        "student": scores[0]["student"],
        "parameters": scores[0]["parameters"],
        "stages": [{"stage": stage.name, "updates": stage.updates} for stage in chains[0].stages],
        "seeds": [chain.seed for chain in chains],
        **{name: [score[name] for score in scores] for name in _SCORES},
        "runs": [[_place(stage) for stage in chain.stages] for chain in chains],
    }


def _difference(arm: Json, against: Json) -> Json:
    pairs = zip(arm["accuracy"], against["accuracy"], strict=True)
    values = [None if None in (one, other) else one - other for one, other in pairs]
    return {"arm": arm["arm"], "against": against["arm"], "values": values}


def _cost(cases: Sequence[Case], records: Mapping[str, Json]) -> list[Json]:
    """Of stages by name: those that are paid once for all students, and those that every student pays."""
    stages = {stage.folder: stage for case in cases for stage in case.in_order()}
    found = []
    for name in dict.fromkeys(stage.name for stage in stages.values()):
        own = [stage for stage in stages.values() if stage.name == name]
        updates = [stage.updates for stage in own if stage.updates is not None]
        found.append(
            {
                "stage": name,
                "runs": len(own),
                "seconds": round(sum(records[stage.folder]["seconds"] for stage in own), 2),
                "updates": sum(updates) if updates else None,
                "paid": "each student" if updates or name == "evaluate" else "once",
            }
        )
    return found


def _kept(recipe: Recipe, case: Case, records: Mapping[str, Json]) -> Chain:
    """Of the arm that the recipe keeps, the seed with the smallest validation loss; else of the arm it names last."""
    run = recipe.sections["run"]
    arm = run["keep"] if run["keep"] in run["arms"] else run["arms"][-1]
    chains = [chain for chain in case.chains if chain.arm == arm]
    return min(chains, key=lambda chain: _validation_loss(chain, records))


def _validation_loss(chain: Chain, records: Mapping[str, Json]) -> float:
    losses = records[chain.stages[-1].folder]["result"].get("validation") or {}
    loss = losses.get("loss", math.inf)
    return loss if math.isfinite(loss) else math.inf


def _scores(chain: Chain, records: Mapping[str, Json]) -> Json:
    return records[chain.scores.folder]["result"]


def _place(stage: Stage) -> str:
    return f"stages/{stage.folder}"
