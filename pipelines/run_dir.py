"""The directory of one training run: its recipe, metrics, checkpoints, student and summary."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from featurecache.errors import CorruptCacheError, IdentityError, UsageError, differences
from featurecache.types import Json

__all__ = ["RunDir"]


class RunDir:
    """RUN/recipe.json, metrics.jsonl, checkpoints/last/, student/, summary.json, scores.json."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    @classmethod
    def create(cls, path: Path | str, recipe: Json, *, resume: bool) -> "RunDir":
        """Begin a run; with `resume`, take up the one that stands there, if one does.

        Raises UsageError if there is one and it is not to be resumed, or something else, and IdentityError if it was
        begun with other settings.
        """
        run = cls(path)
        if run.check_free(resume=resume):
            run._write("recipe.json", recipe)
            return run
        standing = run.recipe()
        # the cache may have grown meanwhile: what was learned from is compared by its parts
        if fields := [field for field in differences(standing, recipe) if field[0] != "digest"]:
            raise IdentityError(f"{path} was begun with other settings:", fields=fields, hint="choose another --out")
        return run

    def check_free(self, *, resume: bool) -> bool:
        """Whether there is no run here yet. Raises UsageError if there is one that is not to be resumed, or something
        else."""
        if not (self.path / "recipe.json").exists():
            begun = {"recipe.json.partial"}  # by a run that was killed in its first moment
            if self.path.exists() and any(path.name not in begun for path in self.path.iterdir()):
                raise UsageError(f"{self.path} is not empty and not a run", hint="choose another --out")
            return True
        if not resume:
            hint = "add --resume to go on with it, or choose another --out"
            raise UsageError(f"a run already stands at {self.path}", hint=hint)
        return False

    @classmethod
    def named(cls, parent: Path, name: str, *, resume: bool) -> Path:
        """parent/name, or parent/name-2 and so on: the first that is free, or the last there is when resuming."""
        names = [name, *(f"{name}-{number}" for number in range(2, 10_000))]
        free = next(index for index, item in enumerate(names) if not (parent / item).exists())
        return parent / names[max(free - 1, 0) if resume else free]

    @property
    def checkpoint(self) -> Path:
        """The newest checkpoint."""
        return self.path / "checkpoints" / "last"

    @property
    def student(self) -> Path:
        """Where the trained student is: student.json, student.safetensors, and tokenizer.json for text."""
        return self.path / "student"

    def recipe(self) -> Json:
        """The settings the run was begun with. Raises UsageError if this is not a run."""
        return self._read("recipe.json")

    def summary(self) -> Json:
        """The last numbers of a finished run. Raises UsageError if it is not finished."""
        return self._read("summary.json")

    def is_finished(self) -> bool:
        """Whether the training came to its end."""
        return (self.path / "summary.json").is_file()

    def append_metrics(self, values: Mapping[str, Any]) -> None:
        """Add one JSON line to metrics.jsonl."""
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")

    def last_losses(self) -> Json:
        """The newest losses in metrics.jsonl: {"training": {name: value}, "validation": {name: value}}."""
        file = self.path / "metrics.jsonl"
        found: Json = {"training": {}, "validation": {}}
        for line in file.read_text(encoding="utf-8").splitlines(keepends=True) if file.exists() else ():
            values = json.loads(line) if line.endswith("\n") else {}
            if "validation" in values:
                found["validation"] = values["validation"]
            elif values:
                facts = ("step", "epoch", "learning_rate")
                found["training"] = {name: value for name, value in values.items() if name not in facts}
        return found

    def validation_losses(self) -> dict[int, float]:
        """The finite losses of all validations so far, by step; none where there are no metrics.

        Raises CorruptCacheError if metrics.jsonl is not what `append_metrics` writes.
        """
        file = self.path / "metrics.jsonl"
        found = {}
        try:
            for line in file.read_text(encoding="utf-8").splitlines(keepends=True) if file.is_file() else ():
                values = json.loads(line) if line.endswith("\n") else {}
                if "validation" in values and math.isfinite(loss := float(values["validation"]["loss"])):
                    found[int(values["step"])] = loss
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            raise CorruptCacheError(f"{file} is no list of metrics: {error}") from None
        return found

    def forget_metrics_after(self, step: int) -> None:
        """Drop the lines of steps that a resumed run will make again, and a line that was cut in the middle."""
        file = self.path / "metrics.jsonl"
        if not file.exists():
            return
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
        partial = file.with_suffix(".partial")
        partial.write_text("".join(kept), encoding="utf-8")
        partial.replace(file)

    def finish(self, summary: Json) -> None:
        """Write the summary: the last file of a run, and what says that it is done."""
        self._write("summary.json", summary)

    def keep_scores(self, split: str, scores: Json) -> None:
        """Remember the newest evaluation on a split, for what the student's card says of it."""
        self._write("scores.json", self.scores() | {split: scores})

    def scores(self) -> Json:
        """The newest evaluation on each split: {split: scores}."""
        return self._read("scores.json") if (self.path / "scores.json").is_file() else {}

    def _write(self, name: str, value: Json) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        partial = self.path / f"{name}.partial"
        partial.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        partial.replace(self.path / name)

    def _read(self, name: str) -> Json:
        file = self.path / name
        if not file.is_file():
            what = "a finished run" if name == "summary.json" else "a run"
            raise UsageError(
                f"{self.path} is not {what}: it has no {name}", hint="give the --out of `fc train-student`"
            )
        try:
            return json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise CorruptCacheError(f"{file} is not JSON: {error}") from None
