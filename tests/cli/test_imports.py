"""`featurecache import probabilities` as it is typed, and what it says of files that cannot be."""

import json

import pytest

from tests.records.answer_files import write_jsonl

COMMAND = ("import", "probabilities")
SMALL = ("--data", "synthetic-text:8", "--split", "train", "--tokenizer", "random", "--workers", "0")
EVEN = [0.25, 0.25, 0.25, 0.25]


def records(**changed):
    """Even chances for each of eight texts; `at_3` is what the record of number 3 has instead."""
    made = {f"synthetic-text/{number:06d}": {"probabilities": EVEN} for number in range(8)}
    for name, record in changed.items():
        made[f"synthetic-text/00000{name[-1]}"] = record
    return [{"key": key, **record} for key, record in made.items()]


def test_a_cache_is_made_and_made_again(run, tmp_path):
    file = write_jsonl(tmp_path / "answers.jsonl", records())
    command = (*COMMAND, file, *SMALL, "--out", tmp_path / "cache", "--json")
    made, again = run(*command), run(*command)
    assert made.code == again.code == 0, made.err
    facts = json.loads(made.out)
    assert facts["teacher"] == "answers" and facts["splits"]["train"] == {
        "rows": 8,
        "views": 1,
        "part": "train/answers",
        "invalid": {},
    }
    assert json.loads(again.out)["digest"] == facts["digest"]
    assert run("verify", tmp_path / "cache").code == 0
    status = run("status", tmp_path / "cache", "--json")
    assert status.code == 0 and json.loads(status.out)["complete"]


@pytest.mark.parametrize("how", ["list", "file"])
def test_class_names(run, tmp_path, how):
    names = '["p", "q", "r", "s"]'
    (tmp_path / "names.json").write_text(names)
    file = write_jsonl(tmp_path / "answers.jsonl", records())
    given = names if how == "list" else tmp_path / "names.json"
    done = run(*COMMAND, file, *SMALL, "--out", tmp_path / "cache", "--classes", given)
    assert done.code == 0 and "the classes are those of --classes: p, q, r, s" in done.err
    part = json.loads((tmp_path / "cache/train/answers/part.json").read_text())
    assert part["outputs"][0]["classes"] == ["p", "q", "r", "s"]


REFUSED = [
    ({"at_3": {"probabilities": [0.5, 0.6, 0, 0]}}, [], ["/000003'", "sum to 1.1, not to 1", "--are logits"]),
    ({"at_3": {"probabilities": [-1, 1, 1, 0]}, "at_5": {"probabilities": [2, 0, 0, 0]}}, [], ["negative", "2 of 8"]),
    ({"at_0": {"probabilities": [float("nan"), 1, 0, 0]}}, [], ["/000000'", "not finite: nan"]),
    ({"at_3": {"probabilities": [0.5, 0.5]}}, [], ["line 4", "/000003'", "it has 2 numbers"]),
    ({}, ["--key-column", "name"], ["no column 'name'", "--key-column"]),
    ({}, ["--classes", '["a", "b"]'], ["has 4 numbers, and there are 2 class names"]),
    ({}, ["--classes", "nowhere.json"], ["cannot read --classes nowhere.json"]),
    ({}, ["--classes", "[1]"], ["is no JSON list of names"]),
    ({}, ["--are", "logits"], ["no column 'logits'", "--are probabilities"]),
    ({}, ["--are", "guesses"], ["--are", "'probabilities', 'logits'"]),
    ({}, ["--tolerance", "2"], ["--tolerance", "0.5"]),
    ({}, ["--name", "a b"], ["cannot name a teacher", "--name a-b"]),
]


@pytest.mark.parametrize(("changed", "options", "says"), REFUSED, ids=[str(item[1:]) for item in REFUSED])
def test_refused_with_a_message_and_exit_code_2(run, tmp_path, changed, options, says):
    file = write_jsonl(tmp_path / "answers.jsonl", records(**changed))
    done = run(*COMMAND, file, *SMALL, "--out", tmp_path / "cache", *options)
    assert done.code == 2 and done.out == "" and "Traceback" not in done.err
    assert all(text in done.err for text in says), done.err
    assert done.err.lower().count("error: ") == 1 and not (tmp_path / "cache").exists()


def test_another_file_into_the_same_cache_is_refused_field_by_field(run, tmp_path):
    file = write_jsonl(tmp_path / "answers.jsonl", records())
    assert run(*COMMAND, file, *SMALL, "--out", tmp_path / "cache").code == 0
    write_jsonl(file, records(at_3={"probabilities": [1, 0, 0, 0]}))
    done = run(*COMMAND, file, *SMALL, "--out", tmp_path / "cache")
    assert done.code == 4 and "already holds train/answers" in done.err
    assert "teacher.records_sha256: it has" in done.err and "teacher.model" not in done.err


def test_the_group_alone_says_what_it_has(run):
    alone, unknown = run("import"), run("import", "probabilites")
    assert "probabilities" in alone.out + alone.err
    assert unknown.code == 2 and "Did you mean 'probabilities'" in unknown.err
