"""`fc pretrain`: texts without labels in, a BERT of any size that has learned to fill in hidden words out."""

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurecache.errors import BadSampleError, UsageError
from featurecache.inputs import TextInput
from featurecache.sources import Source, location, open_data
from featurecache.sources.decode import decode
from featurecache.types import NO_LABEL, Json
from pipelines.events import Message, Run, check_one_process, default_device, default_workers
from pipelines.metrics import follow
from pipelines.readable import readable_rows
from pipelines.run_dir import RunDir
from pipelines.trackers import check_trackers

if TYPE_CHECKING:
    from student.data import CachedData
    from student.masked_lm import MaskedLanguageModel
    from student.settings import TrainSettings

__all__ = ["PretrainRecipe", "make_tokenizer", "pretrain_student"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainRecipe:
    """What `fc pretrain` was asked to do."""

    data: tuple[str, ...]
    """Texts; labels are not looked at."""
    student: str = "bert:4x256"
    """bert:LAYERSxWIDTH."""
    tokenizer: str | None = None
    """A tokenizer.json, or a folder with one; by default one is trained on the texts."""
    vocabulary: int = 30_522
    """Word pieces of a tokenizer that is trained."""
    max_length: int = 128
    """Tokens of a text, special ones included; the rest of a longer one is left out."""
    epochs: float = 40.0
    """Passes over the texts."""
    steps: int | None = None
    """Optimizer steps, instead of epochs."""
    batch_size: int = 256
    """Texts per step."""
    learning_rate: float = 1e-3
    """Peak of the schedule."""
    weight_decay: float = 0.01
    """AdamW's, of weight matrices only."""
    warmup: float = 0.05
    """Part of the steps in which the learning rate rises."""
    validation: float = 0.1
    """Part of the texts, chosen by key, that is held out for validation."""
    precision: str = "float32"
    """float32, or autocast to bfloat16 or float16."""
    seed: int = 0
    """Of weights, order, dropout and masks."""

    def __post_init__(self) -> None:
        if not 0 <= self.validation < 1:
            raise UsageError("--validation is a part of the texts, between 0 and 1")
        if not 0 < self.epochs < float("inf") or (self.steps is not None and self.steps < 1):
            raise UsageError("training needs more than 0 epochs, or at least 1 step")
        if self.batch_size < 1:
            raise UsageError(f"--batch-size is {self.batch_size}", hint="it is at least 1")
        if not 0 <= self.seed < 2**63:
            raise UsageError(f"--seed is {self.seed}", hint="it is from 0 to below 2**63")
        if self.max_length < 3:
            raise UsageError(
                f"--max-length is {self.max_length}", hint="a text has two special tokens: it is at least 3"
            )

    def to_json(self) -> Json:
        """All fields, as recipe.json keeps them."""
        return {**asdict(self), "data": location(self.data)}


def pretrain_student(
    *,
    out: Path | str,
    resume: bool = False,
    device: str | None = None,
    workers: int | None = None,
    compile: bool = False,
    track: Sequence[str] = (),
    text_column: str | None = None,
    limit: int | None = None,
    **recipe: Any,
) -> Run[Json]:
    """Train a BERT on masked texts; `recipe` has the fields of `PretrainRecipe`.

    Leaves a run directory whose student/ is a plain transformers folder with its tokenizer: `--init-from OUT` starts a
    student from it. Returns the run's summary: steps, parameters, vocabulary, losses (nats a hidden token), seconds.
    Raises UsageError, SourceError, and IdentityError for a run that was begun with other settings.
    """
    import torch

    from student.checkpoint import has_checkpoint
    from student.masked_lm import MaskedTexts, masked_objective
    from student.parallel import Ranks
    from student.trainee import Trainee
    from student.trainer import train_together

    data = recipe.pop("data")
    places = [data] if isinstance(data, str | Path) else data
    given = PretrainRecipe(data=tuple(map(str, places)), **recipe)
    check_one_process("pre-training")
    check_trackers(track)
    source = open_data(list(given.data), splits=["train"], text_column=text_column, limit=limit)["train"]
    if source.modality != "text":
        raise UsageError("pretraining is for texts, and these are images", hint="timm has pretrained image models")
    run = RunDir(out)
    run.check_free(resume=resume)  # before a tokenizer is trained
    network_input = yield from _input(given, source, run)
    record = {**given.to_json(), "texts": source.fingerprint(), "input": network_input.to_json()}
    if resume and run.is_finished():
        RunDir.create(run.path, record, resume=True)
        yield Message("it was finished before: nothing to do")
        return run.summary()
    ranks = Ranks.alone(device or default_device())
    torch.manual_seed(given.seed)
    network = _network(given, network_input)
    count = default_workers(ranks.device.type) if workers is None else workers
    parts = yield from _parts(given, source, network_input, count)
    texts = [MaskedTexts(part, seed=given.seed, device=ranks.device) for part in parts]
    settings = _settings(given, texts[0].steps_per_epoch(given.batch_size), compile=compile)
    RunDir.create(run.path, record, resume=resume)
    _keep_tokenizer(run, network_input)
    yield Message(f"run {run.path}: {len(texts[0]):,} texts to train on, {len(texts[1]):,} to validate")
    trainee = Trainee(network, masked_objective(), settings, ranks=ranks, checkpoint=run.checkpoint)
    if resume and has_checkpoint(run.checkpoint):
        trainee.resume()
        yield Message(f"{run.path} goes on from step {trainee.done:,}")
    elif resume:
        yield Message(f"{run.path} has no checkpoint yet and begins anew")
    loop = train_together([trainee], texts[0], settings, validation=texts[1])
    (result,) = yield from follow(loop, [run], [trainee], track=track)
    _publish(network, run.student)
    run.finish(
        {
            "run": str(run.path),
            "student": network.name,
            "parameters": sum(parameter.numel() for parameter in network.parameters()),
            "vocabulary": network_input.vocabulary_size,
            "rows": {"training": len(texts[0]), "validation": len(texts[1])},
            **result,
            "steps": trainee.done,
        }
    )
    return run.summary()


def make_tokenizer(source: Source, size: int) -> Run[str]:
    """The text of a `tokenizer.json` trained on all readable texts of a source. Raises UsageError."""
    from student.tokenizer import train_tokenizer

    yield Message(f"a tokenizer of {size:,} word pieces is trained on {len(source):,} texts")
    return train_tokenizer(_texts(source), size=size)


def _texts(source: Source) -> Iterator[str]:
    for sample in source.iter(0, len(source)):
        with contextlib.suppress(BadSampleError):
            text = decode(sample, "text")
            assert isinstance(text, str)
            yield text


def _input(given: PretrainRecipe, source: Source, run: RunDir) -> Run[TextInput]:
    """The tokenizer that was given, or that the run has begun with, or a new one."""
    from student.tokenizer import read_tokenizer

    standing = run.path / "tokenizer.json"
    if given.tokenizer or standing.is_file():
        text = read_tokenizer(given.tokenizer or standing)
    else:
        text = yield from make_tokenizer(source, given.vocabulary)
    return TextInput(text, max_length=given.max_length)


def _keep_tokenizer(run: RunDir, network_input: TextInput) -> None:
    partial = run.path / "tokenizer.json.partial"
    partial.write_text(network_input.tokenizer_json, encoding="utf-8")
    partial.replace(run.path / "tokenizer.json")


def _network(given: PretrainRecipe, network_input: TextInput) -> "MaskedLanguageModel":
    from student.masked_lm import MaskedLanguageModel
    from student.models.bert import BertBackbone
    from student.models.build import build_backbone

    backbone = build_backbone(given.student, network_input)
    if not isinstance(backbone, BertBackbone):
        raise UsageError(f"{given.student} is not a BERT", hint="write bert:LAYERSxWIDTH, such as bert:4x256")
    return MaskedLanguageModel(backbone)


def _parts(
    given: PretrainRecipe, source: Source, network_input: TextInput, workers: int
) -> "Run[tuple[CachedData, CachedData]]":
    """Texts to train on and to validate with."""
    import numpy as np

    from student.data import CachedData
    from student.selection import validation_rows

    held_out = validation_rows(source.keys, given.validation)
    usable = yield from readable_rows(source, network_input, np.arange(len(source)), workers=workers, what="texts")
    chosen = (np.flatnonzero(usable & ~held_out), np.flatnonzero(usable & held_out))
    if not chosen[0].size:
        raise UsageError("no text is left to train on", hint="lower --validation, or give more data")
    training, validation = (
        CachedData(source, network_input, samples=rows, labels=np.full(rows.size, NO_LABEL), workers=workers)
        for rows in chosen
    )
    return training, validation


def _settings(given: PretrainRecipe, steps_per_epoch: int, *, compile: bool) -> "TrainSettings":
    from student.settings import TrainSettings

    return TrainSettings(
        steps=given.steps or max(round(given.epochs * steps_per_epoch), 1),
        batch_size=given.batch_size,
        learning_rate=given.learning_rate,
        weight_decay=given.weight_decay,
        warmup=given.warmup,
        precision=given.precision,
        compile=compile,
        seed=given.seed,
    )


def _publish(network: "MaskedLanguageModel", folder: Path) -> None:
    """The folder appears whole or not at all."""
    partial = folder.with_name(f"{folder.name}.partial")
    for standing in (partial, folder):
        shutil.rmtree(standing, ignore_errors=True)
    network.save(partial)
    partial.rename(folder)
