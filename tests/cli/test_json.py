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


def test_a_student_that_starts_pretrained(run, cache, tmp_path):
    out, student = tmp_path / "pretrained", tmp_path / "run"
    given = (
        "--student",
        "bert:1x16",
        "--vocabulary",
        "120",
        "--max-length",
        "12",
        "--batch-size",
        "16",
        "--lr",
        "0.01",
    )
    others = ("--weight-decay", "0.1", "--warmup", "0.5", "--validation", "0.2", "--seed", "3", "--amp", "bfloat16")
    texts = (
        "pretrain",
        "--data",
        "synthetic-text:80",
        "--limit",
        "64",
        "--out",
        out,
        "--epochs",
        "2",
        "--json",
        *SMALL,
    )
    made = parsed(run(*texts, *given, *others))
    assert made["run"] == str(out) and made["vocabulary"] == 120 and sum(made["rows"].values()) == 64
    recipe = json.loads((out / "recipe.json").read_text())
    found = [recipe[name] for name in ("learning_rate", "weight_decay", "warmup", "validation", "seed", "precision")]
    assert found == [0.01, 0.1, 0.5, 0.2, 3, "bfloat16"] and (recipe["batch_size"], recipe["max_length"]) == (16, 12)
    assert run(*texts, *given, *others).code == 2  # it stands already
    assert parsed(run(*texts, *given, *others, "--resume")) == made
    options = ("--student", "bert:1x16", "--objective", "kl,ce", "--steps", "1", "--samples", "30", "--json", *SMALL)
    learn = ("train-student", "--cache", cache, "--out", student, "--init-from", out, *options)
    assert parsed(run(*learn))["rows"]["training"] == 30
    own = (out / "tokenizer.json").read_text(encoding="utf-8")
    assert (student / "student/tokenizer.json").read_text(encoding="utf-8") == own
    assert parsed(run("evaluate", student, "--json", *SMALL))["rows"] == 16
    learn = ("train-student", "--cache", cache, "--out", tmp_path / "other", "--tokenizer", out / "tokenizer.json")
    assert parsed(run(*learn, *options))["steps"] == 1
    assert (tmp_path / "other/student/tokenizer.json").read_text(encoding="utf-8") == own


def test_a_teacher_of_few_labels(run, tmp_path):
    given = (
        "--mode",
        "fr",
        "--img-size",
        "32",
        "--epochs",
        "1",
        "--labels",
        "12",
        "--limit",
        "20",
        "--batch-size",
        "4",
    )
    fit = ("fit-teacher", "--model", "timm:test_efficientnet", "--data", "synthetic:40", "--out", tmp_path / "teacher")
    made = parsed(run(*fit, *given, "--json", *SMALL))
    assert sum(made["rows"].values()) == 12


def test_splits_may_be_listed_or_repeated(run, tmp_path):
    shared = ("extract", "--teacher", "random", "--data", "synthetic-text:8", "--json", *SMALL)
    for name, splits in {"a": ["--split", "train,test"], "b": ["--split", "test", "--split", "train"]}.items():
        assert set(parsed(run(*shared, "--out", tmp_path / name, *splits))["splits"]) == {"train", "test"}


def test_numbers_that_json_does_not_have_are_null(capsys):
    console.show({"loss": float("nan"), "rows": [1, float("inf")], "name": "é"}, as_json=True)
    assert capsys.readouterr().out == '{"loss": null, "rows": [1, null], "name": "é"}\n'
