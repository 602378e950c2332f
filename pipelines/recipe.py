"""The settings of a training run, as a person gives them."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Literal, TypeAlias

from featurecache.errors import UsageError
from featurecache.types import Json

CheckInputs: TypeAlias = Literal["all", "sample", "off"]
"""As `student.alignment.CheckInputs`, which imports torch."""

_LATER = ("tokenizer", "samples", "teachers", "balance", "ensemble", "accumulate", "layer_decay", "ema", "patience")

__all__ = ["TrainRecipe"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainRecipe:
    """What `fc train-student` was asked to do. None means: chosen from what the cache holds."""

    cache: str | tuple[str, ...] = "./cache"
    """The cache to learn from, or several; the samples, labels and views are those of the first."""
    split: str = "train"
    """Which of its splits."""
    data: tuple[str, ...] | None = None
    """Where the samples are; by default where the cache says they were."""
    student: str | None = None
    """A timm name, or bert:LAYERSxWIDTH; mobilenetv3_small_100 or bert:4x256 by default."""
    objective: str | None = None
    """Weighted objectives, "kl:1.0,align-uniform:1.0"; by default all that the outputs and labels serve."""
    epochs: float = 30.0
    """Passes over the training rows."""
    steps: int | None = None
    """Optimizer steps, instead of epochs."""
    batch_size: int = 64
    """Samples per step."""
    learning_rate: float | None = None
    """Peak of the schedule; 1e-3 for images, 5e-4 for texts by default."""
    weight_decay: float = 0.05
    """AdamW's, of weight matrices only."""
    warmup: float = 0.05
    """Part of the steps in which the learning rate rises."""
    clip: float = 1.0
    """Largest gradient norm; 0 for no limit."""
    precision: str | None = None
    """float32, or autocast to bfloat16 or float16; by default bfloat16 on GPUs that have it."""
    shuffle: Literal["auto", "global", "blocks"] = "auto"
    """Rows as a whole, or in groups of blocks where the targets do not fit in memory; by default as they fit."""
    seed: int = 0
    """Of weights, order, dropout and negatives."""
    validation: float = 0.1
    """Part of the rows, chosen by key, that is held out for validation."""
    labels: int | None = None
    """How many labels may be seen, chosen by key; all by default."""
    views: int | None = None
    """The first so many views of each sample, the plain one among them; by default all that the cache holds."""
    views_per_sample: int = 1
    """How many of them in one batch, made of one decoding; an epoch shows each sample that often."""
    check_inputs: CheckInputs = "sample"
    """Whether samples are what the teacher saw: bytes and pixels of all, pixels of some, or nothing is compared."""
    missing: Literal["refuse", "skip"] = "refuse"
    """What to do with samples that the cache does not have."""
    max_invalid: float = 0.01
    """Largest part of rows without valid outputs; they are left out, and counted."""
    class_map: Mapping[str, str] | None = None
    """Data class to teacher class, where their names differ."""
    img_size: int | None = None
    """The student's image size in pixels; the teacher's by default."""
    max_length: int | None = None
    """The student's longest text in tokens; the teacher's by default."""
    init_from: str | None = None
    """A trained model of the same shape to start from: a run, a folder, a name; its tokenizer goes with it."""
    tokenizer: str | None = None
    """A tokenizer.json, or a folder with one; by default that of init_from, else the teacher's."""
    samples: int | None = None
    """How many samples are trained on, chosen by key, those with labels that may be seen first; all by default."""
    teachers: tuple[str, ...] | None = None
    """The teachers to learn from, by the names of their parts, or ("all",); by default the first of each cache."""
    balance: Literal["none", "standardise", "phi-s"] | None = None
    """How embeddings are brought to one scale; none by default, phi-s for several teachers."""
    ensemble: Literal["logits", "probabilities"] | None = None
    """What is averaged over the logits of several teachers; one head for each of them by default."""
    accumulate: int = 1
    """Batches whose gradients make one optimizer step."""
    layer_decay: float = 1.0
    """The learning rate of each layer as a part of that of the layer above it."""
    ema: float = 0.0
    """Decay of the average of the weights, which is what is validated and kept; 0 for none."""
    patience: int = 0
    """Validations without a smaller loss after which training stops, and the best weights are kept; 0 for never."""

    def __post_init__(self) -> None:
        if not 0 <= self.validation < 1 or not 0 <= self.max_invalid <= 1:
            raise UsageError("--validation and --max-invalid are parts of the rows, between 0 and 1")
        if not self.epochs > 0 or self.epochs == math.inf or (self.steps is not None and self.steps < 1):
            raise UsageError("training needs more than 0 epochs, or at least 1 step")
        if self.seed >= 2**63:
            raise UsageError(f"--seed {self.seed} is too large", hint="it must be below 2**63")
        least = {"seed": 0, "batch_size": 1, "labels": 1, "img_size": 1, "max_length": 2, "views": 1}
        least |= {"samples": 1, "views_per_sample": 1, "accumulate": 1, "patience": 0}
        for name, smallest in least.items():
            if (value := getattr(self, name)) is not None and value < smallest:
                raise UsageError(f"--{name.replace('_', '-')} is {value}", hint=f"it is at least {smallest}")
        if self.missing not in ("refuse", "skip"):
            raise UsageError(f"--missing is {self.missing!r}", hint="write refuse or skip")
        if self.shuffle not in ("auto", "global", "blocks"):
            raise UsageError(f"--shuffle is {self.shuffle!r}", hint="write auto, global or blocks")
        if self.balance not in (None, "none", "standardise", "phi-s"):
            raise UsageError(f"--balance is {self.balance!r}", hint="write none, standardise or phi-s")
        if self.ensemble not in (None, "logits", "probabilities"):
            raise UsageError(f"--ensemble is {self.ensemble!r}", hint="write logits or probabilities")
        if not self.caches or len(set(self.caches)) < len(self.caches):
            raise UsageError("each --cache is given once", hint="choose teachers of one cache with --teachers")
        if self.check_inputs not in ("all", "sample", "off"):
            raise UsageError(f"--check-inputs is {self.check_inputs!r}", hint="write all, sample or off")

    @property
    def caches(self) -> tuple[str, ...]:
        """Every cache, the first one first."""
        return (self.cache,) if isinstance(self.cache, str) else self.cache

    def to_json(self) -> Json:
        """All fields, as recipe.json keeps them; those that came later only where they are not the default, so that
        runs that were begun before can go on."""
        values = asdict(self)
        later = {name: values.pop(name) for name in _LATER}
        defaults = {item.name: item.default for item in fields(self)}
        chosen = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in later.items()
            if value != defaults[name]
        }
        cache = self.caches[0] if len(self.caches) == 1 else list(self.caches)
        return {**values, "cache": cache, "data": list(self.data) if self.data else None, **chosen}
