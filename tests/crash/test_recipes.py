"""Every recipe that ships, killed in each of its stages."""

import pytest

from tests.crash.recipe_kills import RecipeKills
from tests.small_encoder import write_encoder

_DATA = "synthetic-text:120"


def _arguments(**changed):
    small = {
        "run.student": "bert:1x16",
        "run.labels": 60,
        "run.updates": 60,
        "run.limit": 0,
        "tokenizer.vocabulary": 400,
        "teacher.model": "random",
        "teacher.max_length": 0,
    }
    words = [f"{name}={value}" for name, value in {**small, **changed}.items()]
    options = [word for text in words for word in ("--set", text)]
    return ("pretrained-distillation", "--data", _DATA, "--scale", "tiny", *options)


class TestPretrainedDistillation(RecipeKills):
    arguments = _arguments()


class TestWithATunedTeacher(RecipeKills):
    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def _encoder(cls, tmp_path_factory):
        encoder = write_encoder(tmp_path_factory.mktemp("encoder"), _DATA)
        tuned = {"teacher.adapt": "fit", "teacher.model": encoder, "teacher.max_length": 32, "teacher.epochs": 2}
        cls.arguments = _arguments(**tuned, **{"run.arms": "PD", "run.updates": 40})
