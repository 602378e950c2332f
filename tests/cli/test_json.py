"""`--json`: one JSON object on stdout and nothing else; the log is on stderr."""

import json

import pytest

from pipelines.cli import console

SMALL = ("--workers", "0", "--device", "cpu")


def parsed(result):
    assert result.code == 0, result.err
    assert result.out.count("\n") == 1
    value = json.loads(result.out)
    assert isinstance(value, dict) and value
    return value


@pytest.mark.parametrize("kind", ["teachers", "sources", "encodings", "objectives", "students"])
def test_list(run, kind):
    assert all(isinstance(text, str) for text in parsed(run("list", kind, "--json")).values())


def test_every_command_on_the_way_to_a_student(run, tmp_path):
    out, student = tmp_path / "cache", tmp_path / "run"
    extract = ("extract", "--teacher", "random", "--data", "synthetic-text:16", "--out", out, "--json", *SMALL)
    made = parsed(run(*extract))
    assert made["splits"]["train"]["rows"] == 16
    assert parsed(run(*extract))["digest"] == made["digest"]  # again: nothing to do, the same cache
    assert parsed(run("info", out, "--json"))["digest"] == made["digest"]
    assert parsed(run("status", out, "--json"))["complete"] is True
    options = ("--student", "bert:1x16", "--objective", "align-uniform:1", "--steps", "2", "--max-length", "16")
    summary = parsed(run("train-student", "--cache", out, "--out", student, "--json", *options, *SMALL))
    assert summary["run"] == str(student) and summary["steps"] == 2
    scores = parsed(run("evaluate", student, "--json", *SMALL))
    assert scores["rows"] == 4 and scores["teacher"] == "random-text"
    written = parsed(run("export", student, "--to", "safetensors,transformers", "--json"))
    assert list(written["exports"]) == ["safetensors", "transformers"]
    assert written["exports"]["transformers"]["path"] == str(student / "export/transformers")
    assert parsed(run("probe", "--cache", out, "--json"))["classes"] == 4


def test_splits_may_be_listed_or_repeated(run, tmp_path):
    shared = ("extract", "--teacher", "random", "--data", "synthetic-text:8", "--json", *SMALL)
    for name, splits in {"a": ["--split", "train,test"], "b": ["--split", "test", "--split", "train"]}.items():
        assert set(parsed(run(*shared, "--out", tmp_path / name, *splits))["splits"]) == {"train", "test"}


def test_numbers_that_json_does_not_have_are_null(capsys):
    console.show({"loss": float("nan"), "rows": [1, float("inf")], "name": "é"}, as_json=True)
    assert capsys.readouterr().out == '{"loss": null, "rows": [1, null], "name": "é"}\n'
