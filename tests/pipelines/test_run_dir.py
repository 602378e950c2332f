"""The directory of a run: begun once, taken up only with the same settings, metrics without repeats."""

import json

import pytest

from featurecache.errors import CorruptCacheError, IdentityError, UsageError
from pipelines.run_dir import RunDir

RECIPE = {"student": {"kind": "bert", "layers": 2}, "steps": 10, "objective": "kl", "class_map": {"größer": "larger"}}


def test_a_new_run_keeps_its_recipe(tmp_path):
    run = RunDir.create(tmp_path / "a" / "run", RECIPE, resume=False)
    assert run.recipe() == RECIPE == json.loads((tmp_path / "a/run/recipe.json").read_text())
    assert [path.name for path in run.path.iterdir()] == ["recipe.json"]
    assert not run.is_finished()


def test_a_standing_run_is_taken_up_only_when_asked(tmp_path):
    RunDir.create(tmp_path, RECIPE, resume=False)
    with pytest.raises(UsageError, match="a run already stands at") as caught:
        RunDir.create(tmp_path, RECIPE, resume=False)
    assert "--resume" in caught.value.hint
    assert RunDir.create(tmp_path, RECIPE, resume=True).recipe() == RECIPE


def test_where_none_stands_resume_begins_one(tmp_path):
    assert RunDir.create(tmp_path / "new", RECIPE, resume=True).recipe() == RECIPE


def test_other_settings_are_refused_field_by_field(tmp_path):
    RunDir.create(tmp_path, RECIPE, resume=False)
    other = {**RECIPE, "steps": 20, "student": {"kind": "bert", "layers": 4}}
    with pytest.raises(IdentityError) as caught:
        RunDir.create(tmp_path, other, resume=True)
    assert caught.value.fields == [("steps", 10, 20), ("student.layers", 2, 4)]
    assert caught.value.exit_code == 4
    assert RunDir(tmp_path).recipe() == RECIPE


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for resume in (False, True):
        with pytest.raises(UsageError, match="is not empty and not a run"):
            RunDir.create(tmp_path, RECIPE, resume=resume)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_run_that_was_killed_in_its_first_moment_is_begun_again(tmp_path):
    (tmp_path / "recipe.json.partial").write_text('{"student"')
    assert RunDir.create(tmp_path, RECIPE, resume=True).recipe() == RECIPE
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.json"]


def test_whether_a_place_is_free_is_known_without_a_recipe(tmp_path):
    run = RunDir(tmp_path / "run")
    assert run.check_free(resume=False) and run.check_free(resume=True) and not run.path.exists()
    RunDir.create(run.path, RECIPE, resume=False)
    assert not run.check_free(resume=True)
    with pytest.raises(UsageError, match="a run already stands at"):
        run.check_free(resume=False)


def test_names_are_numbered(tmp_path):
    assert RunDir.named(tmp_path, "bert", resume=False) == tmp_path / "bert"
    assert RunDir.named(tmp_path, "bert", resume=True) == tmp_path / "bert"
    (tmp_path / "bert").mkdir()
    assert RunDir.named(tmp_path, "bert", resume=False) == tmp_path / "bert-2"
    assert RunDir.named(tmp_path, "bert", resume=True) == tmp_path / "bert"
    (tmp_path / "bert-2").mkdir()
    assert RunDir.named(tmp_path, "bert", resume=False) == tmp_path / "bert-3"
    assert RunDir.named(tmp_path, "bert", resume=True) == tmp_path / "bert-2"


def test_metrics_of_steps_to_come_and_a_torn_line_are_dropped(tmp_path):
    run = RunDir(tmp_path)
    run.forget_metrics_after(3)  # there is no file yet
    for step in (1, 2, 2, 3, 4):
        run.append_metrics({"step": step})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 1, "los')
    run.forget_metrics_after(2)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 2]
    run.append_metrics({"step": 3})
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1]) == {"step": 3}


def test_validation_losses_by_step(tmp_path):
    run = RunDir(tmp_path)
    assert run.validation_losses() == {}
    run.append_metrics({"step": 10, "epoch": 0, "loss": 3.0})
    for step, loss in ((10, 2.0), (20, float("nan")), (30, 1.5)):
        run.append_metrics({"step": step, "epoch": 0, "validation": {"loss": loss, "kl": 9.0}})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "valid')
    assert run.validation_losses() == {10: 2.0, 30: 1.5}


@pytest.mark.parametrize(
    "line", ["[1]x", "3", '{"step": 1, "validation": {}}', '{"validation": {"loss": 1}}', "[" * 10**5]
)
def test_other_metrics_are_refused(tmp_path, line):
    (tmp_path / "metrics.jsonl").write_text(f"{line}\n")
    with pytest.raises(CorruptCacheError, match="is no list of metrics"):
        RunDir(tmp_path).validation_losses()


def test_the_summary_says_that_it_is_done(tmp_path):
    run = RunDir.create(tmp_path, RECIPE, resume=False)
    with pytest.raises(UsageError, match="is not a finished run"):
        run.summary()
    run.finish({"loss": 0.5})
    assert run.is_finished() and run.summary() == {"loss": 0.5}


def test_no_run_and_a_damaged_one(tmp_path):
    with pytest.raises(UsageError, match=r"is not a run: it has no recipe\.json"):
        RunDir(tmp_path).recipe()
    (tmp_path / "recipe.json").write_text('{"steps": ')
    with pytest.raises(CorruptCacheError, match="is not JSON"):
        RunDir(tmp_path).recipe()
