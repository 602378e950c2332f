"""How fast and where a training run computes: nothing here changes what is learned, but for rounding."""

from dataclasses import dataclass
from typing import Literal

__all__ = ["Machine"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What `fc train-student` was told of the machine. None means: chosen from what there is."""

    workers: int | None = None
    """Loader processes."""
    targets: Literal["auto", "device", "stream"] = "auto"
    """Where targets, and inputs that the cache holds, are: on the device, or read as they are needed."""
    compile: bool = False
    """Whether students are compiled by torch.compile."""
    channels_last: bool | None = None
    """Whether images lie in memory with their channels innermost; by default on GPUs."""
    shard: bool = False
    """Whether processes share out a student's weights and optimizer (FSDP2), instead of having a copy each (DDP)."""
