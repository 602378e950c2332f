"""Texts from one end to the other: extract, probe, train, evaluate; in Python, and as the six lines of the README."""

import json

from pipelines import describe_cache, evaluate_run, extract_cache, finish, fit_probe, train_student
from tests.end_to_end.command import featurecache

CHANCE = 0.25


def test_a_student_learns_from_a_cache_alone(tmp_path):
    cache, run = tmp_path / "cache", tmp_path / "run"
    extracted = finish(extract_cache(teacher="random", data="synthetic-text:600", out=cache, workers=0, device="cpu"))
    assert extracted["splits"]["train"] == {
        "rows": 600,
        "views": 1,
        "part": "train/random-text",
        "invalid": {},
    }
    probe = finish(fit_probe(cache=cache, labels=300))
    given = {"student": "bert:1x64", "objective": "kl(temperature=1)", "max_length": 48, "workers": 0, "device": "cpu"}
    summary = finish(train_student(cache=cache, out=run, epochs=25.0, batch_size=32, learning_rate=3e-3, **given))
    assert summary["digest"] == probe["digest"] == describe_cache(cache)["digest"]
    scores = finish(evaluate_run(run=run, workers=0, device="cpu"))
    assert scores["rows"] == 150
    assert scores["teacher_accuracy"] > 0.7
    assert scores["accuracy"] > 2 * CHANCE and scores["agreement"] > 2 * CHANCE


def test_the_six_lines(tmp_path):
    lines = [
        "extract --teacher random --data synthetic-text:300 --out cache --json",
        "probe --cache cache --labels 200 --json",
        "train-student --cache cache --student bert:1x64 --objective kl(temperature=1) --epochs 2 --out runs/a --json",
        "evaluate runs/a --json",
        "info cache --json",
        "list objectives --json",
    ]
    extracted, probe, summary, scores, facts, objectives = (
        json.loads(featurecache(line, cwd=tmp_path, env={"OMP_NUM_THREADS": "1"})) for line in lines
    )
    assert extracted["splits"]["test"]["rows"] == 75 and probe["labels"] == 200
    assert summary["run"] == "runs/a" and summary["digest"] == probe["digest"] == facts["digest"]
    assert scores["rows"] == 75 and 0 <= scores["agreement"] <= 1
    assert {"kl", "ce", "infonce"} <= set(objectives)
    assert {path.name for path in tmp_path.iterdir()} >= {"cache", "runs"}
