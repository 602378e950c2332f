"""Recipes before they are carried out: what their files may say, and what stages they come to."""

from pathlib import Path

import pytest

from featurecache.errors import UnknownNameError, UsageError
from pipelines.recipes import recipe as recipe_module
from pipelines.recipes.plan import plan_cases
from pipelines.recipes.recipe import known_recipes, read_recipe

NAME = "pretrained-distillation"
SHIPPED = (Path(recipe_module.__file__).parent / f"{NAME}.toml").read_text()


def settings(*changes, scale="tiny", varied=()):
    return read_recipe(NAME, scale=scale, changes=changes, varied=varied)


class TestReading:
    def test_the_one_that_ships_is_known_by_what_it_is_about(self):
        assert "pre-trained, then distilled" in known_recipes()[NAME]

    @pytest.mark.parametrize("scale", ["tiny", "small", "paper"])
    def test_every_scale_is_whole(self, scale):
        recipe = settings(scale=scale)
        assert recipe.sections["run"]["arms"] == ["basic", "distillation", "PF", "PD", "PD-F"]
        assert all(
            sum(recipe.sections["arms"][arm].values()) == pytest.approx(1) for arm in recipe.sections["run"]["arms"]
        )

    def test_what_is_set_has_the_kind_of_what_stood_there(self):
        recipe = settings("finetune.learning_rate=1", "run.arms=PD", "run.seeds=3,4", "run.student=bert:2x128")
        assert recipe.sections["finetune"]["learning_rate"] == 1.0
        assert isinstance(recipe.sections["finetune"]["learning_rate"], float)
        assert recipe.sections["run"]["arms"] == ["PD"] and recipe.sections["run"]["seeds"] == [3, 4]
        assert recipe.sections["run"]["student"] == "bert:2x128"

    def test_an_arm_of_ones_own(self):
        recipe = settings("arms.mine={pretrain=0.8, distil=0.2}", "run.arms=mine")
        (case,) = plan_cases(recipe, "0")
        assert [(stage.name, stage.updates) for stage in case.chains[0].stages] == [("pretrain", 48), ("distil", 12)]

    def test_cases_are_every_combination(self):
        recipe = settings(varied=["run.labels=10,20", "run.student=bert:2x64,bert:4x64"])
        found = [(case["run.labels"], case["run.student"]) for case, _ in recipe.cases()]
        assert found == [(10, "bert:2x64"), (10, "bert:4x64"), (20, "bert:2x64"), (20, "bert:4x64")]
        assert [sections["run"]["labels"] for _, sections in recipe.cases()] == [10, 10, 20, 20]

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ("run.labels", "cannot read --set"),
            ("labels=3", "cannot read --set"),
            ("run.lables=3", "no setting of run is called 'lables'"),
            ("rum.labels=3", "no section of this recipe is called 'rum'"),
            ("run.labels=many", "run.labels cannot be 'many'"),
            ("run.labels=0.5", "run.labels cannot be 0.5"),
            ("run.arms=PX", "no arm of this recipe is called 'PX'"),
            ("run.keep=PX", "no arm to keep a student of is called 'PX'"),
            ("run.seeds=1,1", "each seed and each arm is given once"),
            ("run.updates=0", "has no run.updates"),
            ("run.updates=1", "a stage of the arm PF has no update"),
            ("arms.PD={pretrain=0.5, distil=0.4}", "the shares of the arm PD are"),
            ("arms.PD={pretrian=1.0}", "no stage of the arm PD is called 'pretrian'"),
            ("arms.PD=1", "the arm PD has no stages"),
            ("arms.PD={pretrain=1.0}", "the arm PD does not end with a student"),
            ("arms.PD={distil=0.5, pretrain=0.3, finetune=0.2}", "the arm PD cannot have the stages distil, pretrain"),
            ("arms.PD={teacher=0.5, distil=0.5}", "the arm PD cannot have the stages teacher, distil"),
            ("run.arms=[1]", "no arm of this recipe is called '1'"),
            ("run.seeds=a,b", r"run.seeds are \['a', 'b'\]"),
            ("run.seeds=[{a=1}]", "run.seeds are"),
            ("run.seeds=-1", "run.seeds are"),
            ("run.labels=-1", "run.labels is -1"),
            ("pretrain.batch_size=0", "pretrain.batch_size is 0"),
            ("distil.learning_rate=nan", "distil.learning_rate is nan"),
        ],
    )
    def test_what_cannot_be_set_is_refused(self, change, message):
        with pytest.raises((UsageError, UnknownNameError), match=message):
            settings(change)

    @pytest.mark.parametrize("varied", ["run.labels=3", "run.labels=3,3", "run.labels"])
    def test_what_does_not_vary_is_refused(self, varied):
        with pytest.raises(UsageError, match="--vary"):
            settings(varied=[varied])

    def test_what_is_varied_twice_is_refused(self):
        with pytest.raises(UsageError, match="--vary run.labels is given twice"):
            settings(varied=["run.labels=3,4", "run.labels=5,6"])

    @pytest.mark.parametrize(
        ("old", "new", "message"),
        [
            ("distil", "'../../elsewhere'", r"has a section '../../elsewhere'"),
            ("teacher", "techer", "is no recipe"),
            ("scales.small.run", "scales", "is no recipe"),
        ],
    )
    def test_a_file_from_anybody_names_no_folder_and_lacks_no_section(self, tmp_path, old, new, message):
        file = tmp_path / "mine.toml"
        file.write_text(SHIPPED.replace(f"[{old}]", f"[{new}]"))
        with pytest.raises(UsageError, match=message):
            read_recipe(str(file))

    def test_a_file_that_lacks_a_setting_is_refused(self, tmp_path):
        file = tmp_path / "mine.toml"
        file.write_text(SHIPPED.replace('adapt = "probe"', 'adopt = "probe"'))
        with pytest.raises(UsageError, match=r"the recipe has no teacher\.adapt"):
            read_recipe(str(file))

    def test_code_as_a_teacher_is_named_by_the_user_alone(self, tmp_path):
        file = tmp_path / "mine.toml"
        file.write_text(SHIPPED.replace('model = "minilm"', 'model = "torch:os:getcwd"'))
        with pytest.raises(UsageError, match="names Python code as its teacher, 'torch:os:getcwd'"):
            read_recipe(str(file))
        mine = read_recipe(str(file), changes=["teacher.model=torch:mine:teacher"])
        assert mine.sections["teacher"]["model"] == "torch:mine:teacher"

    def test_a_file_of_ones_own_is_read_and_a_wrong_one_refused(self, tmp_path):
        file = tmp_path / "mine.toml"
        file.write_text("about = 'x'\n[run]\n")
        with pytest.raises(UsageError, match=r"mine\.toml is no recipe"):
            read_recipe(str(file))
        file.write_text("about = ")
        with pytest.raises(UsageError, match="is not TOML"):
            read_recipe(str(file))
        with pytest.raises(UsageError, match="cannot read the recipe"):
            read_recipe(str(tmp_path / "none.toml"))
        with pytest.raises(UnknownNameError, match="no recipe is called"):
            read_recipe("pretrained-distilation")
        with pytest.raises(UnknownNameError, match="no scale of this recipe is called 'huge'"):
            settings(scale="huge")


class TestPlan:
    def test_every_arm_has_the_same_updates(self):
        for updates in (20, 61, 1001):
            (case,) = plan_cases(settings(f"run.updates={updates}"), "0")
            assert {sum(stage.updates for stage in chain.stages) for chain in case.chains} == {updates}

    def test_arms_that_begin_alike_share_their_stage(self):
        (case,) = plan_cases(settings("run.seeds=0,1"), "0")
        pretrained = {
            (chain.seed, chain.stages[0].folder) for chain in case.chains if chain.stages[0].name == "pretrain"
        }
        assert len(pretrained) == 2
        distilled = [chain.stages[1].folder for chain in case.chains if chain.arm in ("PD", "PD-F") and chain.seed == 0]
        assert len(set(distilled)) == 2  # they have other numbers of updates

    def test_cases_share_what_the_varied_setting_does_not_touch(self):
        few, many = plan_cases(settings(varied=["run.labels=10,20"]), "0")
        shared = {stage.name for stage in few.in_order()} & {
            stage.name for stage in few.in_order() if stage.folder in {other.folder for other in many.in_order()}
        }
        assert shared == {"tokenizer", "extract", "pretrain"}
        small, large = plan_cases(settings(varied=["distil.samples=100,200"]), "0")
        differ = {stage.folder for stage in small.in_order()} ^ {stage.folder for stage in large.in_order()}
        assert {folder.partition("-")[0] for folder in differ} == {"distil", "evaluate", "finetune"}
        basic = [chain.scores.folder for case in (small, large) for chain in case.chains if chain.arm == "basic"]
        assert len(set(basic)) == 1

    def test_a_stage_is_another_for_other_data_settings_seeds_and_beginnings(self):
        base = plan_cases(settings("run.arms=PD"), "0")[0].chains[0].stages
        for changes, data in [((), "1"), (("distil.learning_rate=1",), "0"), (("run.seeds=5",), "0")]:
            other = plan_cases(settings("run.arms=PD", *changes), data)[0].chains[0].stages
            assert base[1].folder != other[1].folder
        other = plan_cases(settings("run.arms=PD", "pretrain.learning_rate=1"), "0")[0].chains[0].stages
        assert base[1].folder != other[1].folder

    def test_a_model_that_is_pretrained_already_costs_no_updates(self):
        (case,) = plan_cases(settings("pretrain.init_from=published", "run.arms=PD,PD-F"), "0")
        updates = [[stage.updates for stage in chain.stages] for chain in case.chains]
        assert updates == [[0, 60], [0, 48, 12]]

    def test_pretraining_may_have_updates_of_its_own(self):
        (case,) = plan_cases(settings("pretrain.updates=500", "run.arms=distillation,PD,PD-F"), "0")
        updates = [[stage.updates for stage in chain.stages] for chain in case.chains]
        assert updates == [[60], [500, 60], [500, 48, 12]]
