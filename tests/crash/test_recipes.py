"""Every recipe that ships, killed in each of its stages."""

from tests.crash.recipe_kills import RecipeKills

_SMALL = {
    "run.student": "bert:1x16",
    "run.labels": 60,
    "run.updates": 60,
    "run.limit": 0,
    "tokenizer.vocabulary": 400,
    "teacher.model": "random",
    "teacher.max_length": 0,
}


class TestPretrainedDistillation(RecipeKills):
    arguments = (
        *("pretrained-distillation", "--data", "synthetic-text:120", "--scale", "tiny"),
        *(word for name, value in _SMALL.items() for word in ("--set", f"{name}={value}")),
    )
