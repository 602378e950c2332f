"""Training data to compare a cache with: fresh views and a teacher in the loop, and targets of the wrong view."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch

from featurecache.augment import ImageAugmentation
from featurecache.frames import Frames
from featurecache.inputs import ImageInput
from featurecache.loader import finish, load
from featurecache.sources import Source
from featurecache.sources.decode import image_size
from featurecache.teachers import Teacher
from featurecache.types import NO_LABEL
from student.objectives.base import Batch
from student.order import global_order

__all__ = ["FreshViews", "NextView"]


class FreshViews:
    """What `student.data.CachedData` gives, in the same order, made anew in every epoch."""

    def __init__(
        self,
        source: Source,
        network_input: ImageInput,
        augmentation: ImageAugmentation,
        *,
        teacher: Teacher | None = None,
        plain_targets: bool = False,
        seed: int = 0,
    ) -> None:
        """With a teacher, its logits are the targets: of the very frame, or of the plain view with `plain_targets`."""
        self.device = torch.device("cpu")
        self._source, self._input, self._augmentation = source, network_input, augmentation
        self.teacher, self.plain_targets, self._seed = teacher, plain_targets, seed
        self.classes = len(source.class_names)
        samples = source.iter(0, len(source))
        self._sizes = np.array([image_size(sample.encoded) for sample in samples], np.int32)

    def __len__(self) -> int:
        return len(self._source)

    def steps_per_epoch(self, batch_size: int) -> int:
        """Full batches of an epoch."""
        return max(len(self) // batch_size, 1)

    def shuffled(
        self, batch_size: int, *, seed: int, start: int, stop: int, part: tuple[int, int] = (0, 1)
    ) -> Iterator[Batch]:
        """Batches of steps [start, stop)."""
        frames = (self._frames(*self._chosen(step, batch_size, seed)) for step in range(start, stop))
        for loaded in load(self._source, self._input, frames):
            inputs = finish(loaded, loaded.inputs, self._augmentation).inputs
            labels = torch.from_numpy(self._source.labels[loaded.rows])
            yield Batch(
                inputs=inputs,
                targets=self._targets(loaded.rows, inputs),
                labels=torch.where(labels < 0, NO_LABEL, labels),
                rows=torch.from_numpy(loaded.rows),
            )

    def in_order(self, batch_size: int, *, first: int = 0, every: int = 1) -> Iterator[Batch]:
        """Not needed: nothing is validated."""
        raise NotImplementedError

    def keys_of(self, rows: torch.Tensor) -> list[str]:
        """The keys of samples."""
        return [self._source.keys[row] for row in rows.tolist()]

    def _chosen(self, step: int, batch_size: int, seed: int) -> tuple[np.ndarray, int]:
        per_epoch = self.steps_per_epoch(batch_size)
        epoch, at = divmod(step, per_epoch)
        return global_order(len(self), seed=seed, epoch=epoch)[at * batch_size :][:batch_size], epoch

    def _frames(self, samples: np.ndarray, epoch: int) -> Frames:
        keys = [self._source.keys[sample] for sample in samples]
        place = {"first_row": 0, "rows": len(self)}  # of no account where nothing is mixed
        drawn = self._augmentation.draw(keys, self._sizes[samples], view=epoch + 1, seed=self._seed, **place)
        return Frames.of(samples, drawn[:, None])

    def _targets(self, samples: np.ndarray, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if self.teacher is None:
            return {}
        if self.plain_targets:
            (plain,) = load(self._source, self._input, [samples])
            inputs = plain.inputs
        with torch.no_grad():
            return {"logits": self.teacher(inputs)["logits"].float()}


class NextView:
    """Targets that are those of the next of `count` views of the same sample."""

    def __init__(self, targets: Any, count: int) -> None:
        self._targets, self._count = targets, count

    def gather(self, plan: Iterable[np.ndarray], *, views: Iterable[np.ndarray], **options: Any) -> Iterator[Any]:
        """As `Targets.gather`, of other views."""
        return self._targets.gather(plan, views=((view + 1) % self._count for view in views), **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._targets, name)
