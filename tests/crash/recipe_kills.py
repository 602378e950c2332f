"""The class of tests that every recipe is put through: killed in each of its stages and resumed, it ends the same."""

import hashlib
import json
import random

import pytest

from pipelines.recipes import run as carrying_out
from student import trainer
from tests.crash.children import kill_oneself, start, wait
from tests.crash.small_extraction import featurecache

_SIGKILL = -9


class RecipeKills:
    """Give `arguments`: a recipe, its data, and settings with which it takes seconds."""

    arguments: tuple[str, ...]

    @pytest.fixture(scope="class")
    @classmethod
    def whole(cls, tmp_path_factory):
        """What a run leaves that nobody interrupts, and how much each stage has to tell, in the order of the stages.

        It is made in this process, so that its children find all modules loaded.
        """
        out, told = tmp_path_factory.mktemp("whole") / "out", {}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(carrying_out, "STAGES", watched(lambda stage, events: told.update({stage.folder: events})))
            with pytest.raises(SystemExit) as ended:
                cls.carry_out(out)
        assert not ended.value.code
        return out, told

    @classmethod
    def carry_out(cls, out):
        """The command, in this process."""
        featurecache("run", *cls.arguments, "--out", out, "--device", "cpu", "--workers", "0")

    def killed_in(self, folder, moment, out, log):
        """The exit status of the command in a child that is killed in a stage, when it has told so many events."""

        def work():
            def look(stage, events):
                if (stage.folder, events) == (folder, moment):
                    kill_oneself()

            carrying_out.STAGES = watched(look)
            self.carry_out(out)

        return wait(start(work, log=log))

    def test_killed_in_every_stage_it_ends_the_same(self, folder, whole, monkeypatch):
        monkeypatch.setattr(trainer, "_SAVE_SECONDS", 0.0)  # a checkpoint every ten steps, to go on from
        (finished, told), out, log, chance = whole, folder / "out", folder / "log", random.Random(0)
        assert set(told) == {path.stem for path in (finished / "stages").glob("*.json")}
        for stage, events in told.items():
            # up to after the last one, when all is done and nobody has noted it
            assert self.killed_in(stage, chance.randint(0, events), out, log) == _SIGKILL, log.read_text()
        assert self.killed_in(None, 0, out, log) == 0, log.read_text()
        assert facts(out) == facts(finished)

    def test_a_finished_run_is_not_done_again(self, whole, tmp_path):
        out, _ = whole
        before = changes(out / "stages")
        assert self.killed_in(None, 0, out, tmp_path / "log") == 0
        assert "stage 1 of" not in (tmp_path / "log").read_text()
        assert before == changes(out / "stages")


def watched(look):
    """The kinds of stages, which call look(stage, events told so far) at their beginning and after each event."""

    def watching(do):
        def done(stage, work):
            look(stage, 0)
            events, run = 0, do(stage, work)
            while True:
                try:
                    event = next(run)
                except StopIteration as stop:
                    return stop.value
                yield event
                events += 1
                look(stage, events)

        return done

    return {name: watching(do) for name, do in carrying_out.STAGES.items()}


def facts(out):
    """Results without what they cost and how they were asked for, and a hash of everything that was learned."""
    results = json.loads((out / "results.json").read_text())
    told = {name: value for name, value in results.items() if name not in ("cost", "command")}
    learned = [*out.rglob("*.safetensors"), *out.rglob("tokenizer.json"), *out.rglob("metrics.jsonl")]
    files = [path for path in learned if "checkpoints" not in path.parts]
    return told, {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def changes(folder):
    """When each file was written."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
