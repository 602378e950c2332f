"""Training in several processes: who takes part, and how the rows of all of them become one batch.

Every rank sees its own rows of a global batch. It gathers the student's outputs and the targets of all ranks and
computes the objective on the whole, so in-batch negatives are those of the whole and every rank holds the same loss.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from featurecache.errors import UsageError
from featurecache.types import SparseLogits
from student.objectives.base import Batch, Mix

__all__ = ["Ranks", "gather_batch", "gather_outputs", "gather_with_gradients", "mean_over_ranks"]

_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")

TokenDims = Mapping[str, tuple[int, ...]]
"""The dimensions of an output or target that are as long as the longest text of its batch."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """The processes that train one student together, and which of them this is; to be closed."""

    rank: int
    world: int
    device: torch.device
    """Where this process trains."""

    @classmethod
    def alone(cls, device: torch.device | str = "cpu") -> "Ranks":
        """One process: nothing here communicates."""
        return cls(0, 1, torch.device(device))

    @classmethod
    def from_environment(cls, device: torch.device | str) -> "Ranks":
        """What torchrun says, or alone where it says nothing. With CUDA, LOCAL_RANK is the number of the device.

        Raises UsageError where it says half of it, for other devices or too few, or if the others cannot be reached.
        """
        device = torch.device(device)
        if not any(name in os.environ for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")):
            return cls.alone(device)
        rank, world, local = _numbers()
        if world == 1:
            return cls.alone(device)
        if device.type not in ("cpu", "cuda"):
            raise UsageError(f"several processes cannot train on {device.type}", hint="use --device cpu or cuda")
        if device.type == "cuda":
            if local >= torch.cuda.device_count():
                raise UsageError(
                    f"LOCAL_RANK is {local}, and this machine has {torch.cuda.device_count()} CUDA devices",
                    hint="start as many processes as it has: torchrun --nproc-per-node=gpu",
                )
            device = torch.device("cuda", local)
        _meet(rank, world, device)
        return cls(rank, world, device)

    @property
    def is_first(self) -> bool:
        """Whether this is the process that prints and publishes."""
        return self.rank == 0

    def first_says(self, value: bool) -> bool:
        """What the first process says: for what a clock decides, which is another on each."""
        if self.world == 1:
            return value
        import torch.distributed as dist

        told = torch.tensor(value)  # on the CPU
        dist.broadcast(told, src=0)
        return bool(told)

    def of_first(self, tensor: Tensor) -> Tensor:
        """The first process's tensor, of the same shape on all; on the device where it is."""
        if self.world == 1:
            return tensor
        import torch.distributed as dist

        told = tensor.detach().cpu().contiguous()
        dist.broadcast(told, src=0)
        return told.to(tensor.device)

    def wait(self) -> None:
        """Return when every process has come here."""
        if self.world > 1:
            import torch.distributed as dist

            dist.all_reduce(torch.zeros(1))  # on the CPU: a barrier of nccl would make the device wait too

    def close(self) -> None:
        """End the group, if there is one."""
        if self.world > 1:
            import torch.distributed as dist

            dist.destroy_process_group()


class _Gather(torch.autograd.Function):
    """all_gather along the first dimension; the gradient is summed over the ranks, each keeps that of its own rows."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        import torch.distributed as dist

        gathered = tensor.new_empty(dist.get_world_size() * tensor.shape[0], *tensor.shape[1:])
        dist.all_gather_into_tensor(gathered, tensor.contiguous())
        return gathered

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        import torch.distributed as dist

        total = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total.chunk(dist.get_world_size())[dist.get_rank()]


def gather_with_gradients(tensor: Tensor, ranks: Ranks) -> Tensor:
    """(rows, ...), equally many on each rank -> (world * rows, ...) in the order of the ranks.

    If each rank computes the same loss from it, its own rows get `world` times their gradient, which an average over
    the ranks, such as that of DistributedDataParallel, makes the gradient of that loss.
    """
    gathered: Tensor = _Gather.apply(tensor) if ranks.world > 1 else tensor
    return gathered


def gather_outputs(
    outputs: Mapping[str, Tensor], ranks: Ranks, *, token_dims: TokenDims | None = None
) -> dict[str, Tensor]:
    """The student's outputs for the rows of all ranks, with gradients, in one exchange for each dtype.

    `token_dims` has the dimensions to be padded with zeros to the longest of all ranks: {"hidden.4": (1,)}.
    """
    if ranks.world == 1:
        return dict(outputs)
    dims = token_dims or {}
    longest = _longest(outputs, dims, ranks)
    first = {id(value): name for name, value in reversed(list(outputs.items()))}  # one output may have two names
    own = {name: _padded(outputs[name], dims.get(name, ()), longest) for name in first.values()}
    gathered: dict[str, Tensor] = {}
    for dtype in {value.dtype: None for value in own.values()}:
        names = [name for name, value in own.items() if value.dtype == dtype]
        values = _side_by_side([own[name] for name in names], lambda flat: gather_with_gradients(flat, ranks))
        gathered |= dict(zip(names, values, strict=True))
    return {name: gathered[first[id(value)]] for name, value in outputs.items()}


def gather_batch(batch: Batch, ranks: Ranks, *, token_dims: TokenDims | None = None) -> Batch:
    """Targets, labels, rows and mix of the rows of all ranks, in one exchange; equally many rows on each.

    The bank is the same on all ranks and stays. Of the inputs only the "mask" of texts is kept, and only where
    `token_dims` (as of `gather_outputs`) says that a target or an output has tokens.
    """
    if ranks.world == 1:
        return batch
    mask = {"mask": batch.inputs["mask"]} if token_dims and "mask" in batch.inputs else {}
    dims = {**(token_dims or {}), "mask": (1,)}
    present = {name: value for name, value in {**batch.targets, **mask}.items() if isinstance(value, Tensor)}
    longest = _longest(present, dims, ranks) if token_dims else 0
    own = {
        name: _padded(value, dims.get(name, ()), longest) if isinstance(value, Tensor) else value
        for name, value in {**batch.targets, **mask}.items()
    }
    parts = [*own.values(), batch.labels, batch.rows, *([batch.mix] if batch.mix else [])]
    flat = [tensor for part in parts for tensor in _tensors(part)]
    whole = iter(_side_by_side([_as_bytes(tensor) for tensor in flat], lambda rows: gather_with_gradients(rows, ranks)))
    gathered = iter([_from_bytes(rows, like) for rows, like in zip(whole, flat, strict=True)])
    values = {name: _rebuilt(part, gathered) for name, part in own.items()}
    return replace(
        batch,
        inputs={name: values.pop(name) for name in mask},
        targets=values,
        labels=next(gathered),
        rows=next(gathered),
        mix=_rebuilt(batch.mix, gathered) if batch.mix else None,
    )


def mean_over_ranks(
    sums: Mapping[str, int | float | Tensor], counts: Mapping[str, int | float | Tensor], ranks: Ranks
) -> dict[str, float]:
    """sum_r sums / sum_r counts for each name; every rank gives the same names, with 0 where it had no rows."""
    values = [float(numbers[name]) for numbers in (sums, counts) for name in sums]
    total = torch.tensor(values, dtype=torch.float64)
    if ranks.world > 1:
        import torch.distributed as dist

        dist.all_reduce(total)
    over, under = total.view(2, -1).tolist()
    return {name: a / b for name, a, b in zip(sums, over, under, strict=True)}


def _numbers() -> tuple[int, int, int]:
    missing = [name for name in _VARIABLES if name not in os.environ]
    hint = "start all processes with torchrun, or unset RANK, WORLD_SIZE and LOCAL_RANK to train in one"
    if missing:
        raise UsageError(f"the environment describes several processes, but lacks {', '.join(missing)}", hint=hint)
    texts = [os.environ[name] for name in _VARIABLES[:3]]
    try:
        rank, world, local = map(int, texts)
    except ValueError:
        rank = world = local = -1
    if not (0 <= rank < world and 0 <= local < world):
        raise UsageError("no process has RANK {!r}, WORLD_SIZE {!r}, LOCAL_RANK {!r}".format(*texts), hint=hint)
    return rank, world, local


def _meet(rank: int, world: int, device: torch.device) -> None:
    import torch.distributed as dist

    if device.type == "cuda":
        torch.cuda.set_device(device)
    # gloo besides nccl, so that checkpoints and counts need no device
    backend = "gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl"
    try:
        dist.init_process_group(backend, init_method="env://", rank=rank, world_size=world)
    except (RuntimeError, ValueError) as error:
        raise UsageError(
            f"process {rank} of {world} cannot meet the others: {error}",
            hint="see that all were started, and that MASTER_ADDR and MASTER_PORT can be reached",
        ) from error


def _longest(values: Mapping[str, Tensor], token_dims: TokenDims, ranks: Ranks) -> int:
    """The longest of all ranks. Lengths are known without asking a device, so none is made to wait."""
    lengths = [values[name].shape[dim] for name in values for dim in token_dims.get(name, ())]
    if not lengths:
        return 0
    import torch.distributed as dist

    longest = torch.tensor(max(lengths))  # on the CPU
    dist.all_reduce(longest, op=dist.ReduceOp.MAX)
    return int(longest)


def _padded(value: Tensor, dims: Sequence[int], longest: int) -> Tensor:
    for dim in dims:
        missing = list(value.shape)
        missing[dim] = longest - value.shape[dim]
        if missing[dim]:
            value = torch.cat([value, value.new_zeros(missing)], dim=dim)
    return value


def _side_by_side(values: Sequence[Tensor], change: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """`change` of the rows of all values at once: an exchange costs more than what is exchanged."""
    widths = [value[0].numel() for value in values]
    whole: Tensor = change(torch.cat([value.reshape(len(value), -1) for value in values], dim=1))
    parts = whole.split(widths, dim=1)
    return [part.reshape(-1, *value.shape[1:]) for part, value in zip(parts, values, strict=True)]


def _as_bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().reshape(len(tensor), -1).contiguous().view(torch.uint8)


def _from_bytes(rows: Tensor, like: Tensor) -> Tensor:
    return rows.contiguous().view(like.dtype).view(-1, *like.shape[1:])


def _tensors(part: Tensor | SparseLogits | Mix) -> list[Tensor]:
    if isinstance(part, Tensor):
        return [part]
    values = (getattr(part, item.name) for item in fields(part))
    return [value for value in values if isinstance(value, Tensor)]


def _rebuilt(part: Any, tensors: Iterator[Tensor]) -> Any:
    """The part with its tensors replaced, in the order of `_tensors`."""
    if isinstance(part, Tensor):
        return next(tensors)
    names = [item.name for item in fields(part) if isinstance(getattr(part, item.name), Tensor)]
    return replace(part, **{name: next(tensors) for name in names})
