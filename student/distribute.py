"""A student on many devices: copied to each (DDP) or sharded over them (FSDP2), and what optimising it then needs."""

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from student.parallel import Ranks

__all__ = [
    "average_gradients",
    "clip_gradients",
    "copy_from_first",
    "distribute",
    "full_weights",
    "shard",
    "unmixed_groups",
]


def distribute(student: nn.Module, ranks: Ranks, *, find_unused: bool = False) -> nn.Module:
    """The student in torch's DistributedDataParallel (Li et al., VLDB 2020, arXiv 2006.15704); itself if alone.

    Call what comes back, save and evaluate the student itself. All begin with the first rank's weights. Buffers are not
    exchanged: synchronised norms compute the same on each rank. Parameters that no step uses need `find_unused`.
    """
    if ranks.world == 1:
        return student
    from torch.nn.parallel import DistributedDataParallel

    copy_from_first(student, ranks)  # buffers too
    known = inspect.signature(DistributedDataParallel).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # of an older torch
    options: dict[str, Any] = {name: False, "find_unused_parameters": find_unused}
    return DistributedDataParallel(student, gradient_as_bucket_view=True, **options)


def shard(student: nn.Module, ranks: Ranks) -> nn.Module:
    """The student, its parameters sharded in place block by block (FSDP2; Zhao et al., VLDB 2023, arXiv 2304.11277).

    For a student that does not fit on one device with its optimizer. Do it before the optimizer is made. Each rank must
    then call it equally often, in evaluation too. Blocks are the members of a list or sequence of equals, as the layers
    of a BERT, a ViT or a ResNet are.
    """
    if ranks.world == 1:
        return student
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    copy_from_first(student, ranks)
    mesh = init_device_mesh(ranks.device.type, (ranks.world,))
    for block in list(_blocks(student)):
        fully_shard(block, mesh=mesh)
    fully_shard(student, mesh=mesh)
    return student


def copy_from_first(module: nn.Module, ranks: Ranks) -> None:
    """Give every rank the first one's parameters and buffers: a model's weights depend on what was drawn before it."""
    if ranks.world == 1:
        return
    import torch.distributed as dist

    for tensor in (*module.parameters(), *module.buffers()):
        whole = tensor.detach().contiguous()
        dist.broadcast(whole, src=0)
        tensor.detach().copy_(whole)


def average_gradients(parameters: Iterable[nn.Parameter], ranks: Ranks) -> None:
    """The mean of the gradients over the ranks, in place, in one exchange: for an objective's own parameters.

    Every rank computes the same there, but kernels of a GPU may round differently each time, and a part of the
    objective may draw random numbers: without it the copies would drift apart.
    """
    gradients = [item.grad for item in parameters if item.grad is not None]
    if ranks.world == 1 or not gradients:
        return
    import torch.distributed as dist

    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    parts = (flat / ranks.world).split([gradient.numel() for gradient in gradients])
    torch._foreach_copy_(gradients, [part.view_as(own) for part, own in zip(parts, gradients, strict=True)])


def clip_gradients(parameters: Sequence[nn.Parameter], *, max_norm: float) -> Tensor:
    """Scale all gradients together to a norm of at most `max_norm`; returns the norm before, on their device.

    Sharded and whole parameters may stand together, which torch's own function refuses.
    """
    groups = _by_sharding(parameter for parameter in parameters if parameter.grad is not None)
    norms = []
    for group in groups:
        norm: Any = nn.utils.get_total_norm([parameter.grad for parameter in group if parameter.grad is not None])
        norms.append(norm.full_tensor() if _is_sharded(norm) else norm)
    total = torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros(())
    for group in groups:
        nn.utils.clip_grads_with_norm_(group, max_norm, total)
    return total


def unmixed_groups(groups: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Optimizer groups of which none has both sharded and whole parameters: a fused optimizer cannot step on both."""
    return [{**group, "params": part} for group in groups for part in _by_sharding(group["params"])]


def full_weights(module: nn.Module) -> dict[str, Tensor]:
    """The state of a module with sharded tensors put together; every rank must ask for it."""
    state: dict[str, Any] = module.state_dict()
    return {name: value.full_tensor() if _is_sharded(value) else value for name, value in state.items()}


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """Outermost first, none within another."""
    for child in module.children():
        members = list(child.children()) if isinstance(child, nn.ModuleList | nn.Sequential) else []
        if len(members) > 1 and len({type(member) for member in members}) == 1:
            yield from (member for member in members if any(True for _ in member.parameters()))
        else:
            yield from _blocks(child)


def _by_sharding(parameters: Iterable[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Whole ones and sharded ones; a kind that there is none of is left out."""
    kinds: dict[bool, list[nn.Parameter]] = {}
    for parameter in parameters:
        kinds.setdefault(_is_sharded(parameter), []).append(parameter)
    return [kinds[kind] for kind in sorted(kinds)]


def _is_sharded(value: object) -> bool:
    # without importing torch.distributed.tensor, which takes seconds and which one process does not need
    return hasattr(value, "full_tensor")
