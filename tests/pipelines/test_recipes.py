"""Recipes carried out: what is left, what is refused, and whom a student can learn from."""

import json
import shutil
import statistics
from functools import partial
from pathlib import Path

import pytest
import transformers
from safetensors.torch import load_file

from featurecache.errors import IdentityError, UnknownNameError, UsageError
from featurecache.sources import open_data
from featurecache.store.reader import open_cache
from pipelines import extract_cache, finish, run_recipe
from pipelines.recipes import run as running
from pipelines.recipes import stages
from pipelines.recipes.alone import alone_in
from pipelines.recipes.plan import plan_cases
from pipelines.recipes.recipe import read_recipe
from student.start import start_place
from student.tokenizer import train_tokenizer
from tests.small_encoder import write_encoder

NAME = "pretrained-distillation"
DATA = "synthetic-text:80"
SMALL = [
    "run.student=bert:1x16",
    "run.labels=40",
    "run.updates=12",
    "run.limit=0",
    "run.max_length=16",
    "tokenizer.vocabulary=400",
    "teacher.model=random",
    "teacher.max_length=0",
]


def carried_out(out, *changes, varied=(), data=DATA, arms="PD,distillation", **options):
    given = [*SMALL, f"run.arms={arms}", *changes]
    return finish(
        run_recipe(
            recipe=NAME,
            data=data,
            out=out,
            scale="tiny",
            changes=given,
            varied=varied,
            device="cpu",
            workers=0,
            **options,
        )
    )


def results(out):
    return json.loads((out / "results.json").read_text())


def write_texts(folder):
    """60 texts of two classes to train on, and to test."""
    folder.mkdir()
    rows = "".join(f"{number},a{number},{'xy'[number % 2]}\n" for number in range(60))
    for split in ("train", "test"):
        (folder / f"{split}.csv").write_text(f"id,text,label\n{rows}")


def stopped(stage, work):
    raise KeyboardInterrupt


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "out"
    found = carried_out(out, "run.seeds=0,1,2", arms="basic,distillation,PF,PD,PD-F")
    return out, found


class TestCarriedOut:
    def test_it_leaves_results_a_page_and_a_student(self, whole):
        out, found = whole
        assert found["cases"] == results(out)["cases"]
        assert (out / "results.html").read_text().startswith("<!doctype html>")
        kept = results(out)["kept"]
        runs = {arm["arm"]: arm["runs"] for arm in found["cases"][0]["arms"]}
        losses = [json.loads((out / run[-1] / "summary.json").read_text())["validation"]["loss"] for run in runs["PD"]]
        assert kept["arm"] == "PD" and kept["seed"] == losses.index(min(losses))
        assert (
            load_file(out / "student/student.safetensors").keys()
            == load_file(out / runs["PD"][kept["seed"]][-1] / "student/student.safetensors").keys()
        )

    def test_differences_are_paired_by_seed(self, whole):
        _, found = whole
        (case,) = found["cases"]
        arms = {arm["arm"]: arm["accuracy"] for arm in case["arms"]}
        pairs = {(item["arm"], item["against"]): item["values"] for item in case["differences"]}
        assert len(pairs) == 10
        assert pairs["PD", "basic"] == [ours - theirs for ours, theirs in zip(arms["PD"], arms["basic"], strict=True)]
        assert statistics.mean(pairs["PD-F", "PF"]) == pytest.approx(
            statistics.mean(arms["PD-F"]) - statistics.mean(arms["PF"])
        )

    def test_scores_are_those_of_evaluate(self, whole):
        out, found = whole
        for arm in found["cases"][0]["arms"]:
            for accuracy, run in zip(arm["accuracy"], arm["runs"], strict=True):
                assert json.loads((out / run[-1] / "scores.json").read_text())["test"]["accuracy"] == accuracy

    def test_what_is_paid_once_is_told_apart(self, whole):
        cost = {item["stage"]: item for item in results(whole[0])["cost"]}
        assert {name for name, item in cost.items() if item["paid"] == "once"} == {"tokenizer", "extract", "probe"}
        assert cost["pretrain"]["runs"] == 3 and cost["pretrain"]["updates"] == 18
        assert cost["distil"]["runs"] == 9 and cost["distil"]["updates"] == 3 * (12 + 6 + 5)
        assert all(item["seconds"] > 0 for item in cost.values())

    def test_each_student_goes_on_from_the_one_before(self, whole):
        out, found = whole
        (chain, *_) = next(arm["runs"] for arm in found["cases"][0]["arms"] if arm["arm"] == "PD-F")
        recipes = [json.loads((out / run / "recipe.json").read_text()) for run in chain]
        assert [recipe.get("init_from") for recipe in recipes] == [None, *(str(out / run) for run in chain[:-1])]
        hashes = {recipe["input"]["tokenizer_sha256"] for recipe in recipes}
        assert len(hashes) == 1

    def test_more_arms_and_seeds_may_be_asked_for_and_nothing_else(self, tmp_path):
        out = tmp_path / "out"
        first = carried_out(out, arms="distillation")
        folders = {path.name for path in (out / "stages").iterdir()}
        more = carried_out(out, "run.seeds=0,1", arms="distillation,basic", varied=["distil.samples=0,30"])
        assert more["cases"][0]["arms"][0]["accuracy"][0] == first["cases"][0]["arms"][0]["accuracy"][0]
        assert folders < {path.name for path in (out / "stages").iterdir()}
        with pytest.raises(IdentityError, match="was begun otherwise") as caught:
            carried_out(out, "run.labels=30", arms="distillation")
        assert caught.value.fields == [("sections.run.labels", 40, 30)]
        with pytest.raises(IdentityError, match="was begun otherwise"):
            carried_out(out, arms="distillation", data="synthetic-text:90")

    def test_a_dry_run_tells_what_is_done_and_writes_nothing(self, whole, tmp_path):
        planned = carried_out(tmp_path / "none", dry_run=True)["stages"]
        assert not (tmp_path / "none").exists()
        assert [name.partition("-")[0] for name in planned] == [
            *("tokenizer", "extract", "probe", "pretrain", "distil", "evaluate", "distil", "evaluate")
        ]
        assert set(planned.values()) == {"to do", "to do, 6 updates", "to do, 12 updates"}
        done = carried_out(whole[0], "run.seeds=0,1,2", arms="PD", dry_run=True)["stages"]
        assert all(state.startswith("done") for state in done.values())

    def test_several_processes_are_refused(self, tmp_path, monkeypatch):
        monkeypatch.setenv("WORLD_SIZE", "2")
        with pytest.raises(UsageError, match="a recipe takes one process, and torchrun started 2"):
            carried_out(tmp_path / "out")

    def test_two_at_once_in_one_folder_are_refused(self, tmp_path):
        whole = carried_out(tmp_path, arms="distillation")
        with alone_in(tmp_path / "stages"), pytest.raises(UsageError, match="another process is at work in"):
            carried_out(tmp_path, arms="distillation")
        assert carried_out(tmp_path, arms="distillation") == whole

    def test_a_folder_of_something_else_is_refused(self, tmp_path):
        (tmp_path / "file").write_text("mine")
        with pytest.raises(UsageError, match="is not empty and has no recipe"):
            carried_out(tmp_path)

    def test_data_that_cannot_do_are_refused_before_anything_is_computed(self, tmp_path):
        with pytest.raises(UsageError, match="this recipe is for texts"):
            carried_out(tmp_path / "out", data="synthetic:80")
        with pytest.raises(UsageError, match="run.labels is 90, and 80 samples to train on have one"):
            carried_out(tmp_path / "out", "run.labels=90")
        (tmp_path / "texts.txt").write_text("".join(f"text {number}\n" for number in range(60)))
        with pytest.raises(UsageError, match="teacher.adapt=probe needs labels"):
            carried_out(tmp_path / "out", "run.labels=0", data=f"train={tmp_path}/texts.txt")
        assert not (tmp_path / "out").exists()

    def test_out_may_be_spelled_otherwise_when_it_goes_on(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        first = carried_out(Path("out"), arms="PD")
        assert first["student"] == "out/student"
        for record in Path("out/stages").glob("distil-*.json"):
            record.unlink()
        assert carried_out(tmp_path / "out", arms="PD")["cases"] == first["cases"]

    def test_data_may_be_elsewhere_when_it_goes_on(self, tmp_path):
        write_texts(tmp_path / "data")
        first = carried_out(tmp_path / "out", arms="PD", data=str(tmp_path / "data"))
        (tmp_path / "data").rename(tmp_path / "moved")
        more = carried_out(tmp_path / "out", "run.seeds=0,1", arms="PD", data=str(tmp_path / "moved"))
        assert more["cases"][0]["arms"][0]["accuracy"][0] == first["cases"][0]["arms"][0]["accuracy"][0]

    def test_data_over_a_network_are_those_that_were_named(self, tmp_path, monkeypatch):
        """A cache does not say where these are to be opened, not even one that was just made."""
        local = carried_out(tmp_path / "local", "run.limit=60", arms="PD")
        monkeypatch.setattr(stages, "is_remote", lambda place: True)
        remote = carried_out(tmp_path / "remote", "run.limit=60", arms="PD")
        assert remote["cases"] == local["cases"]
        (run,) = (tmp_path / "remote/stages").glob("distil-*/recipe.json")
        assert json.loads(run.read_text())["data"] == [DATA]

    def test_without_a_test_part_the_validation_part_is_measured_and_said_to_be(self, tmp_path):
        write_texts(tmp_path / "data")
        (tmp_path / "data/test.csv").unlink()
        carried_out(tmp_path / "out", arms="distillation", data=str(tmp_path / "data"))
        assert results(tmp_path / "out")["split"] == "train, its validation part"
        assert "train, its validation part" in (tmp_path / "out/results.html").read_text()

    def test_other_content_under_the_same_names_is_refused(self, tmp_path, monkeypatch):
        data, file, out = tmp_path / "data", tmp_path / "tokenizer.json", tmp_path / "out"
        write_texts(data)
        file.write_text(train_tokenizer(["a b c"], size=20))
        begun = partial(carried_out, out, f"tokenizer.of={file}", data=str(data))
        monkeypatch.setattr(running, "_carried_out", stopped)
        with pytest.raises(KeyboardInterrupt):
            begun()
        with pytest.raises(KeyboardInterrupt):
            begun()
        for place, content, name in [
            (data / "test.csv", (data / "test.csv").read_text().replace("59,a59,y", "59,a59,x"), "--data"),
            (file, train_tokenizer(["a b d"], size=20), str(file)),
        ]:
            before = place.read_text()
            place.write_text(content)
            with pytest.raises(IdentityError, match="was begun otherwise") as caught:
                begun()
            assert [field[0] for field in caught.value.fields] == [f"content of {name}"]
            place.write_text(before)

    def test_a_run_from_before_content_was_noted_goes_on(self, tmp_path, monkeypatch):
        monkeypatch.setattr(running, "_carried_out", stopped)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                carried_out(tmp_path)
            record = json.loads((tmp_path / "recipe.json").read_text())
            assert record.pop("read").keys() == {"--data"}
            (tmp_path / "recipe.json").write_text(json.dumps(record))

    def test_a_run_that_was_killed_in_its_first_moment_can_be_begun(self, tmp_path):
        (tmp_path / "recipe.json.partial").write_text("{")
        assert carried_out(tmp_path, arms="distillation")["cases"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return write_encoder(tmp_path_factory.mktemp("encoder"), DATA)


class TestTeachers:
    def test_an_encoder_is_tuned_on_the_labels_that_may_be_seen(self, tmp_path, encoder):
        changes = [f"teacher.model={encoder}", "teacher.adapt=fit", "teacher.max_length=32", "teacher.epochs=1"]
        found = carried_out(tmp_path / "out", *changes)
        names = {path.stem.rpartition("-")[0] for path in (tmp_path / "out/stages").glob("*.json")}
        assert {"fit-teacher", "extract"} <= names and "probe" not in names
        (fitted,) = (tmp_path / "out/stages").glob("fit-teacher-*/teacher")
        assert len(transformers.AutoConfig.from_pretrained(fitted).id2label) == 4
        assert found["cases"][0]["teacher"]["accuracy"] is not None

    def test_a_cache_that_stands_is_used_where_it_is(self, tmp_path):
        cache = tmp_path / "cache"
        finish(extract_cache(teacher="random", data=DATA, out=cache, workers=0, device="cpu"))
        seals = sorted((cache / "seals").iterdir())
        changes = [f"teacher.cache={cache}", "teacher.adapt=probe"]
        carried_out(tmp_path / "out", *changes)
        assert sorted((cache / "seals").iterdir()) == seals  # the probe is in a copy
        (copy,) = (tmp_path / "out/stages").glob("probe-*/cache")
        reader = open_cache(copy).split("train")
        assert set(reader.outputs) == {"embedding", "logits"}
        names = {path.stem.rpartition("-")[0] for path in (tmp_path / "out/stages").glob("*.json")}
        assert "extract" not in names

    def test_a_teacher_may_be_known_by_its_probabilities_alone(self, tmp_path):
        file = tmp_path / "probabilities.jsonl"
        with file.open("w") as stream:
            for split, source in open_data([DATA], splits=["train", "test"]).items():
                for key, label in zip(source.keys, source.labels, strict=True):
                    chances = [0.7 if number == label else 0.1 for number in range(4)]
                    stream.write(json.dumps({"split": split, "key": key, "probabilities": chances}) + "\n")
        found = carried_out(tmp_path / "out", f"teacher.probabilities={file}")
        names = {path.stem.rpartition("-")[0] for path in (tmp_path / "out/stages").glob("*.json")}
        assert names == {"tokenizer", "import", "pretrain", "distil", "evaluate"}
        assert found["cases"][0]["teacher"] == {"name": "probabilities", "accuracy": 1.0, "rows": 20}

    def test_a_pretrained_model_is_started_from_with_its_tokenizer(self, tmp_path, encoder):
        changes = [f"pretrain.init_from={encoder}", f"tokenizer.of={encoder}"]
        found = carried_out(tmp_path / "out", *changes)
        arms = {arm["arm"]: arm for arm in found["cases"][0]["arms"]}
        assert [stage["updates"] for stage in arms["PD"]["stages"]] == [0, 12]
        recipe = json.loads((tmp_path / "out" / arms["PD"]["runs"][0][-1] / "recipe.json").read_text())
        assert start_place(recipe["init_from"], None) == str(encoder)
        kept = (tmp_path / "out/student/tokenizer.json").read_text()
        assert json.loads(kept)["model"] == json.loads((encoder / "tokenizer.json").read_text())["model"]

    def test_the_published_tokenizer_is_that_of_the_students_size(self, tmp_path):
        with pytest.raises(UsageError, match="bert:1x16 is none of the 24 sizes that were published"):
            carried_out(tmp_path / "out", "pretrain.init_from=published", "tokenizer.of=published")

    def test_a_cache_that_stands_is_not_cut_and_has_no_teacher_beside_it(self):
        for change, message in [
            ("run.limit=100", "teacher.cache cannot be used with run.limit"),
            ("teacher.adapt=fit", r"teacher.cache cannot be used with teacher\.adapt=fit"),
            ("teacher.probabilities=file.csv", r"teacher.cache cannot be used with teacher\.probabilities"),
        ]:
            changes = ["run.limit=0", "teacher.cache=cache", change]
            recipe = read_recipe(NAME, scale="tiny", changes=changes)
            with pytest.raises(UsageError, match=message):
                plan_cases(recipe, "0")

    def test_what_is_no_teacher_is_refused(self, tmp_path):
        with pytest.raises(UsageError, match=r"teacher.adapt is 'prob'"):
            carried_out(tmp_path / "out", "teacher.adapt=prob")
        with pytest.raises(UnknownNameError, match="no teacher is called 'mnilm'"):
            carried_out(tmp_path / "out", "teacher.model=mnilm")
        with pytest.raises(UsageError, match=r"cannot read teacher.probabilities none.csv"):
            carried_out(tmp_path / "out", "teacher.probabilities=none.csv")
        assert not (tmp_path / "out").exists()


def test_a_run_that_lost_its_last_words_goes_on(tmp_path):
    out = tmp_path / "out"
    whole = carried_out(out)
    (out / "results.json").unlink()
    shutil.rmtree(out / "student")
    for record in (out / "stages").glob("evaluate-*.json"):
        record.write_text('{"seconds": 100.0}')
    assert carried_out(out) == whole
    evaluated = next(item for item in results(out)["cost"] if item["stage"] == "evaluate")
    assert 200 < evaluated["seconds"] < 260  # what was spent before the interruption counts
