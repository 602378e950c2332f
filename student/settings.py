"""How a student is trained: the numbers of a run, checked once."""

import contextlib
import math
from dataclasses import dataclass
from typing import Any

import torch

from featurecache.errors import UsageError

__all__ = ["PRECISIONS", "TrainSettings"]

PRECISIONS: dict[str, torch.dtype | None] = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""What a student's forward pass computes in; other than float32 means autocast."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSettings:
    """How a student is trained."""

    steps: int
    """Optimizer steps in all."""
    batch_size: int = 64
    """Samples of a batch, over all processes; an optimizer step sees `accumulate` batches."""
    accumulate: int = 1
    """Batches whose gradients make one optimizer step. Negatives are those of a batch, not of a step."""
    learning_rate: float = 1e-3
    """Peak of the schedule: linear warm-up, then cosine to zero."""
    weight_decay: float = 0.05
    """Of weight matrices only; norms and biases have none."""
    layer_decay: float = 1.0
    """The learning rate of each layer of the backbone as a part of that of the layer above it (BEiT, ICLR 2022)."""
    warmup: float = 0.05
    """Part of the steps in which the learning rate rises."""
    clip: float = 1.0
    """Largest norm of the gradient; 0 for no limit."""
    ema: float = 0.0
    """Decay of the exponential moving average of the weights, which is then what is validated and kept; 0 for none."""
    patience: int = 0
    """Validations without a smaller loss after which training stops, and the best weights are kept; 0 for never."""
    precision: str = "float32"
    """"float32", or autocast to "bfloat16" or "float16"."""
    compile: bool = False
    """Whether the student is compiled by torch.compile; where that fails, it runs as it is, and a warning says so."""
    channels_last: bool = False
    """Whether images and convolutions lie in memory with their channels innermost."""
    shard: bool = False
    """Whether several processes share out weights and optimizer between them (FSDP2), or each has all (DDP)."""
    seed: int = 0
    """Of weights, order, dropout and negatives."""
    interval: int = 0
    """Steps between validations, each followed by a checkpoint; 0 for every epoch, or 100 steps if that is rarer."""

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1 or self.accumulate < 1:
            raise UsageError(
                f"training needs at least one step of one sample, not {self.steps} of {self.batch_size}"
                + (f" x {self.accumulate}" if self.accumulate != 1 else "")
            )
        if self.precision not in PRECISIONS:
            raise UsageError(f"unknown precision {self.precision!r}", hint=f"known: {', '.join(PRECISIONS)}")
        positive = 0 < self.learning_rate < math.inf
        if not (positive and self.weight_decay >= 0 and 0 <= self.warmup <= 1 and self.clip >= 0):
            raise UsageError("learning rate must be positive, decay and clip not negative, warm-up between 0 and 1")
        if not 0 <= self.ema < 1 or not 0 < self.layer_decay <= 1 or self.patience < 0:
            raise UsageError(
                f"ema is {self.ema:g}, layer decay {self.layer_decay:g}, patience {self.patience}",
                hint="ema is from 0 to below 1, the layer decay above 0 and at most 1, the patience 0 or more",
            )
        if self.shard and self.precision == "float16":
            hint = "use bfloat16, which needs no scale"
            raise UsageError("torch has no loss scale for weights that are shared out between processes", hint=hint)
        if self.shard and (self.ema or self.patience):
            message = "weights that are shared out between processes have no average, and no best ones to go back to"
            raise UsageError(message, hint="leave out the sharding, or the average and the patience")

    def autocast(self, device: torch.device) -> contextlib.AbstractContextManager[Any]:
        """What a forward pass on this device runs under."""
        dtype = PRECISIONS[self.precision]
        return torch.autocast(device.type, dtype) if dtype else contextlib.nullcontext()
