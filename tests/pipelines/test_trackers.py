"""Curves in TensorBoard's files, and in a tracker with the functions of Weights & Biases."""

import contextlib
import os
import sys
import types

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from featurecache.errors import UsageError
from pipelines.trackers import open_trackers

RECIPE = {"digest": "0123456789abcdef", "learning_rate": 0.1}


def scalars(run, name):
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_tensorboard_reads_what_was_told_once_even_where_a_run_went_on(tmp_path):
    for begun, steps in ((0, (10, 20, 30)), (20, (30, 40))):
        with open_trackers(["tensorboard"], tmp_path, RECIPE, step=begun) as trackers:
            for step in steps:
                trackers[0].log({"training/loss": 1 / step + begun}, step)
    found = scalars(tmp_path, "training/loss")
    assert [step for step, _ in found] == [10, 20, 30, 40]
    assert [value for _, value in found] == pytest.approx([1 / 10, 1 / 20, 1 / 30 + 20, 1 / 40 + 20])


class Recorder(types.ModuleType):
    """A module as wandb is one, which keeps what it is called with."""

    def __init__(self, name):
        super().__init__(name)
        self.calls = []

    def init(self, project, *, name=None, config=None, resume=None, **other):
        print("welcome to the tracker")
        self.calls.append(("init", project, name, config, resume, other["id"]))

    def log(self, values, step):
        self.calls.append(("log", values, step))

    def finish(self):
        self.calls.append(("finish",))


def test_a_tracker_like_wandb_is_told_everything_and_keeps_off_stdout(tmp_path, monkeypatch, capsys):
    recorder = Recorder("recorder")
    monkeypatch.setitem(sys.modules, "recorder", recorder)
    run = tmp_path / "small"
    with contextlib.suppress(KeyboardInterrupt), open_trackers(["recorder"], run, RECIPE) as trackers:
        trackers[0].log({"validation/loss": 0.5}, 10)
        raise KeyboardInterrupt
    first, *others = recorder.calls
    assert first[:5] == ("init", "featurecache", "small", RECIPE, "allow")
    assert others == [("log", {"validation/loss": 0.5}, 10), ("finish",)]
    assert capsys.readouterr().out == ""


def test_a_run_is_the_same_to_a_tracker_when_it_goes_on_and_another_when_it_is_begun_anew(tmp_path, monkeypatch):
    recorder = Recorder("recorder")
    monkeypatch.setitem(sys.modules, "recorder", recorder)
    recipe = tmp_path / "recipe.json"
    for begun in (1, 1, 2):
        recipe.write_text("{}")
        os.utime(recipe, ns=(begun, begun))
        with open_trackers(["recorder"], tmp_path, RECIPE):
            pass
    again, once_more, anew = [call[5] for call in recorder.calls if call[0] == "init"]
    assert again == once_more != anew


def test_students_of_one_run_have_a_curve_each_where_the_tracker_gives_runs(tmp_path, monkeypatch):
    class Run(Recorder):
        pass

    runs, module = [], types.ModuleType("giver")
    module.init = lambda name, **_: runs.append(Run(name)) or runs[-1]
    module.log = module.finish = None
    monkeypatch.setitem(sys.modules, "giver", module)
    with (
        open_trackers(["giver"], tmp_path / "a", RECIPE) as first,
        open_trackers(["giver"], tmp_path / "b", RECIPE) as second,
    ):
        first[0].log({"loss": 1.0}, 10)
        second[0].log({"loss": 2.0}, 10)
    told = {run.__name__: run.calls for run in runs}
    assert told == {name: [("log", {"loss": loss}, 10), ("finish",)] for name, loss in (("a", 1.0), ("b", 2.0))}


def test_only_what_a_tracker_takes_is_given_to_it(tmp_path, monkeypatch):
    found = {}
    module = types.ModuleType("plain_tracker")
    module.init = lambda project, config: found.update(project=project, config=config)
    module.log = module.finish = lambda *_args, **_kwargs: None
    monkeypatch.setitem(sys.modules, "plain_tracker", module)
    with open_trackers(["plain_tracker"], tmp_path, RECIPE):
        assert found == {"project": "featurecache", "config": RECIPE}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_tracker", "there is no tracker 'no_such_tracker'"),
        ("json", r"'json' is no tracker: it has no init\(\)"),
        ("", "there is no tracker ''"),
    ],
)
def test_what_is_no_tracker_is_refused(tmp_path, name, message):
    with pytest.raises(UsageError, match=message), open_trackers([name], tmp_path, RECIPE):
        pass


def test_tensorboard_that_is_not_installed_is_named_with_the_line_that_installs_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UsageError) as caught, open_trackers(["tensorboard"], tmp_path, RECIPE):
        pass
    assert caught.value.hint == "pip install 'featurecache[track]'"
