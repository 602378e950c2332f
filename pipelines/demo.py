"""`fc demo`: the main job on real input: MiniLM, 4,000 package descriptions, 500 labels, a two-layer student."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurecache.errors import UsageError
from featurecache.types import Json
from pipelines.evaluate import evaluate_run
from pipelines.events import Message, Run
from pipelines.extract import extract_cache
from pipelines.probe import fit_probe
from pipelines.train import train_student

if TYPE_CHECKING:
    from featurecache.inputs import Inputs

__all__ = ["run_demo"]

LABELS = 500
_STUDENT: dict[str, Any] = {"student": "bert:2x128", "max_length": 64, "learning_rate": 1e-3, "steps": 300}
_OBJECTIVES: dict[str, dict[str, Any]] = {
    "labels alone": {"objective": "ce", "labels": LABELS},
    "distilled": {"objective": "kl(temperature=1):1.0,align-uniform:0.1"},
}
_TIMED_TEXTS = 128


def run_demo(*, out: Path | str = "./demo-run", device: str | None = None) -> Run[Json]:
    """Extract, probe, train two students in equal steps, and compare them with the teacher on test data.

    Returns a row for each of the three, and the seconds of every stage. Raises UsageError where the sample data or the
    teacher's package is missing.
    """
    out, data = Path(out), _sample()
    if out.exists():
        if not (out / "cache" / "cache.json").is_file():
            raise UsageError(f"{out} is not a demo's directory", hint="choose another --out")
        shutil.rmtree(out)
    seconds: dict[str, float] = {}
    cache = out / "cache"

    def timed(stage: str, run: Run[Json]) -> Run[Json]:
        began = time.monotonic()
        result = yield from run
        seconds[stage] = round(time.monotonic() - began, 1)
        return result

    yield from timed("extract", extract_cache(teacher="minilm", data=data, out=cache, device=device))
    yield from timed("probe", fit_probe(cache=cache, labels=LABELS))
    scores = {}
    for name, objective in _OBJECTIVES.items():
        run = out / name.replace(" ", "-")
        training = train_student(cache=cache, out=run, device=device, **_STUDENT, **objective)
        yield from timed(f"train, {name}", training)
        scores[name] = yield from timed(f"evaluate, {name}", evaluate_run(run=run, device=device))
    yield Message("timing teacher and student on the same texts")
    speeds = _speeds(out / "distilled", device)
    return {"rows": _rows(scores, speeds), "labels": LABELS, "seconds": seconds, "out": str(out)}


def _sample() -> list[str]:
    """The sample that ships with the project's source, beside the packages."""
    folder = Path(__file__).parents[1] / "examples" / "data"
    if not (folder / "debtext-train.jsonl.gz").is_file():
        raise UsageError("the demo's sample data are not here", hint="run it in a clone of the project: make demo")
    return [f"{split}={folder / f'debtext-{split}.jsonl.gz'}" for split in ("train", "test")]


def _rows(scores: dict[str, Json], speeds: dict[str, dict[str, float]]) -> list[Json]:
    distilled = scores["distilled"]
    teacher = {
        "model": f"teacher: {distilled['teacher']}, probe on {LABELS} labels",
        "accuracy": distilled["teacher_accuracy"],
        "neighbours": distilled["teacher_neighbours"],
        "agreement": 1.0,
        **speeds["teacher"],
    }
    students = [
        {
            "model": f"{score['student']}: {name if name == 'distilled' else f'{LABELS} labels alone'}",
            "accuracy": score["accuracy"],
            "neighbours": score["neighbours"],
            "agreement": score["agreement"],
            **speeds["student"],
        }
        for name, score in scores.items()
    ]
    return [teacher, *students]


def _speeds(run: Path, device: str | None) -> dict[str, dict[str, float]]:
    """Parameters in millions and texts per second of teacher and student, tokens ready, one batch size for both."""
    import torch

    from featurecache.sources import open_data
    from featurecache.teachers import load_teacher
    from featurecache.teachers.transformers_text import TransformersText
    from student.export import load_student

    source = open_data(_sample(), splits=["test"])["test"]
    texts = [source[row].encoded.decode() for row in range(_TIMED_TEXTS)]
    teacher = load_teacher("minilm", modality="text")
    assert isinstance(teacher, TransformersText)
    student, _ = load_student(run / "student")
    found = {}
    with torch.inference_mode():
        for name, network, take, parameters in (
            ("teacher", teacher, teacher.input, teacher.parameters),
            ("student", student, student.backbone.input, sum(p.numel() for p in student.parameters())),
        ):
            network.to(device or "cpu")
            batch = take.collate([take.prepare(text) for text in texts])
            moved = {key: value.to(device or "cpu") for key, value in batch.items()}
            found[name] = {"parameters": parameters / 1e6, "texts_per_second": _rate(network, moved)}
    return found


def _rate(network: Callable[[Any], Any], batch: "Inputs") -> float:
    network(batch)
    began = time.monotonic()
    passes = 0
    while passes < 2 or time.monotonic() - began < 1:
        network(batch)
        passes += 1
    return passes * _TIMED_TEXTS / (time.monotonic() - began)
