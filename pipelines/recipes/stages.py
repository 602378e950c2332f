"""The kinds of work a stage can be: each calls one pipeline, and can be called again after it was interrupted."""

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from featurecache.errors import UsageError
from featurecache.sources import is_remote
from featurecache.types import Json
from pipelines.events import Message, Run
from pipelines.recipes.plan import Stage

__all__ = ["STAGES", "Work"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Where a recipe is carried out."""

    out: Path
    data: tuple[str, ...]
    device: str | None = None
    workers: int | None = None

    def folder(self, stage: Stage) -> Path:
        """Of one stage."""
        return self.out / "stages" / stage.folder

    def cache(self, stage: Stage) -> Path:
        """The cache that a stage has left."""
        return Path(stage.settings["path"]) if stage.does == "cache" else self.folder(stage) / "cache"

    def tokenizer(self, stage: Stage) -> str | None:
        """The tokenizer.json that a stage is given."""
        given = stage.before.get("tokenizer")
        return str(self.folder(given) / "tokenizer.json") if given else None

    @property
    def machine(self) -> dict[str, Any]:
        """What every pipeline that computes is told."""
        return {"device": self.device, "workers": self.workers}


Do: TypeAlias = Callable[[Stage, Work], Run[Json]]


def _tokenizer(stage: Stage, work: Work) -> Run[Json]:
    from featurecache.sources import open_data
    from pipelines.pretrain import make_tokenizer
    from student.start import start_place, start_tokenizer

    of = stage.settings["of"]
    if of:
        text = start_tokenizer(start_place(of, stage.settings.get("student")))
        if text is None:
            raise UsageError(f"{of} has no tokenizer", hint="give tokenizer.of a tokenizer.json or a folder with one")
    else:
        data, limit = _texts(stage.settings["texts"], stage, work)
        source = open_data(data, splits=["train"], limit=limit)["train"]
        text = yield from make_tokenizer(source, stage.settings["vocabulary"])
    folder = work.folder(stage)
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / "tokenizer.json.partial"
    partial.write_text(text, encoding="utf-8")
    partial.replace(folder / "tokenizer.json")
    return {}


def _fit_teacher(stage: Stage, work: Work) -> Run[Json]:
    from pipelines.fit import fit_teacher

    out = work.folder(stage) / "teacher"
    if out.exists():  # it appears when it is whole
        yield Message(f"{out} stands already")
        return {}
    settings = {name: value for name, value in stage.settings.items() if name not in ("fingerprint", "limit", "labels")}
    labels, limit = stage.settings["labels"] or None, stage.settings["limit"] or None
    found = yield from fit_teacher(data=work.data, out=out, labels=labels, limit=limit, **settings, **work.machine)
    return {"validation_accuracy": found["validation_accuracy"]}


def _extract(stage: Stage, work: Work) -> Run[Json]:
    from pipelines.extract import extract_cache

    fitted = stage.before.get("teacher")
    teacher = str(work.folder(fitted) / "teacher") if fitted else stage.settings["model"]
    found = yield from extract_cache(
        teacher=teacher,
        data=work.data,
        out=work.cache(stage),
        outputs=stage.settings["outputs"],
        batch_size=stage.settings["batch_size"],
        max_length=stage.settings["max_length"] or None,
        limit=stage.settings["limit"] or None,
        **work.machine,
    )
    return {"digest": found["digest"]}


def _probe(stage: Stage, work: Work) -> Run[Json]:
    from pipelines.probe import fit_probe

    cache = work.cache(stage)
    yield Message("the probe is added to a copy of the cache that shares its files")
    _link_tree(work.cache(stage.before["cache"]), cache)
    found = yield from fit_probe(cache=cache, labels=stage.settings["labels"] or None)
    return {name: found[name] for name in ("digest", "labels", "validation_accuracy")}


def _cache(stage: Stage, work: Work) -> Run[Json]:
    from pipelines.load import open_sealed

    yield Message(f"the teacher's outputs are those of {stage.settings['path']}")
    return {"digest": open_sealed(stage.settings["path"])[1]}


def _import(stage: Stage, work: Work) -> Run[Json]:
    from pipelines.imports import import_probabilities

    found = yield from import_probabilities(
        file=stage.settings["file"],
        data=work.data,
        out=work.cache(stage),
        tokenizer=work.tokenizer(stage),
        max_length=stage.settings["max_length"] if work.tokenizer(stage) else None,
        limit=stage.settings["limit"] or None,
        workers=work.workers,
    )
    return {"digest": found["digest"]}


def _pretrain(stage: Stage, work: Work) -> Run[Json]:
    from pipelines.pretrain import pretrain_student

    out, settings = work.folder(stage), stage.settings
    if settings["init_from"]:
        yield Message(f"the pre-trained model is {settings['init_from']}")
        return {"init_from": settings["init_from"]}
    data, limit = _texts(settings["data"], stage, work)
    return (
        yield from pretrain_student(
            data=data,
            out=out,
            resume=out.exists(),
            student=settings["student"],
            tokenizer=work.tokenizer(stage),
            max_length=settings["max_length"],
            limit=limit,
            steps=stage.updates,
            seed=settings["seed"],
            **{name: settings[name] for name in ("batch_size", "learning_rate", "weight_decay", "warmup")},
            **work.machine,
        )
    )


def _train(stage: Stage, work: Work) -> Run[Json]:
    from pipelines.train import train_student

    out, settings = work.folder(stage), stage.settings
    own = ("objective", "batch_size", "learning_rate", "weight_decay", "warmup", "student", "seed")
    start = stage.before.get("start")
    place = None if start is None else start.settings.get("init_from") or str(work.folder(start))
    cache = stage.before["cache"]
    told = _told_data(cache, work)
    return (
        yield from train_student(
            cache=str(work.cache(cache)),
            data=told,
            missing="skip" if told and settings["limit"] else "refuse",  # the cache has the first of them
            out=out,
            resume=out.exists(),
            steps=stage.updates,
            init_from=place,
            tokenizer=work.tokenizer(stage),
            max_length=settings["max_length"] or None,
            labels=settings["labels"] or None,
            samples=settings.get("samples") or None,
            **{name: settings[name] for name in own},
            **work.machine,
        )
    )


def _evaluate(stage: Stage, work: Work) -> Run[Json]:
    from pipelines.evaluate import evaluate_run

    student, cache = stage.before["student"], work.cache(stage.before["cache"])
    return (yield from evaluate_run(run=work.folder(student), cache=cache, features=False, **work.machine))


def _texts(given: str, stage: Stage, work: Work) -> tuple[list[str], int | None]:
    """Where texts are, and how many of them may be used."""
    return [given] if given else list(work.data), stage.settings["limit"] or None


def _told_data(cache: Stage, work: Work) -> tuple[str, ...] | None:
    """What a student is told of where its samples are; None where its cache says the same, and may say it."""
    from pipelines.load import open_sealed

    if _root(cache).does == "cache" or any(map(is_remote, work.data)):
        return work.data
    says = open_sealed(str(work.cache(cache)))[0].origin("train").get("data")
    return None if says == list(work.data) else work.data


def _root(stage: Stage) -> Stage:
    return _root(stage.before["cache"]) if "cache" in stage.before else stage


def _link_tree(source: Path, target: Path) -> None:
    """The same files under another name. What was linked before, in a run that was interrupted, stays."""
    for file in sorted(source.rglob("*")):
        copy = target / file.relative_to(source)
        if file.is_dir():
            copy.mkdir(parents=True, exist_ok=True)
        elif not copy.exists():
            try:
                os.link(file, copy)
            except OSError:  # not on every file system
                partial = copy.with_name(f"{copy.name}.partial")
                shutil.copy2(file, partial)
                partial.replace(copy)


STAGES: Mapping[str, Do] = {
    "tokenizer": _tokenizer,
    "fit-teacher": _fit_teacher,
    "extract": _extract,
    "probe": _probe,
    "cache": _cache,
    "import": _import,
    "pretrain": _pretrain,
    "train-student": _train,
    "evaluate": _evaluate,
}
"""What `does` of a stage can be."""
