"""Batch normalisation with the statistics of all ranks, on a CPU too (Ioffe and Szegedy, arXiv 1502.03167)."""

import torch
from timm.layers.norm_act import BatchNormAct2d, convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from featurecache.errors import UsageError
from student.parallel import Ranks, gather_with_gradients

__all__ = ["SynchronisedNorm", "synchronise_norms"]

_KNOWN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, BatchNormAct2d)


class SynchronisedNorm(nn.Module):
    """What a batch norm would give of the rows of all ranks together, however many each has.

    It takes over the parameters, buffers and settings of the module that it replaces, under the same names, and the
    dropout and activation that timm puts behind one. torch's own SyncBatchNorm refuses tensors on a CPU.
    """

    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None

    def __init__(self, norm: _BatchNorm, ranks: Ranks) -> None:
        super().__init__()
        self.ranks = ranks
        self.eps, self.momentum = norm.eps, norm.momentum
        self.weight, self.bias = norm.weight, norm.bias
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            self.register_buffer(name, getattr(norm, name))
        self.drop: nn.Module = norm.drop if isinstance(norm, BatchNormAct2d) else nn.Identity()
        self.act: nn.Module = norm.act if isinstance(norm, BatchNormAct2d) else nn.Identity()
        self.train(norm.training)

    def forward(self, input: Tensor) -> Tensor:
        """(rows, channels, ...) -> the same shape and dtype."""
        normalised = self._over_all(input) if self.training else self._as_evaluated(input)
        activated: Tensor = self.act(self.drop(normalised))
        return activated

    def _as_evaluated(self, input: Tensor) -> Tensor:
        own = self.running_mean is None
        return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, own, 0.0, self.eps)

    def _over_all(self, input: Tensor) -> Tensor:
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        channels = x.shape[1]
        variance, mean = torch.var_mean(x, dim=[dim for dim in range(x.ndim) if dim != 1], correction=0)
        count = x.new_full((1,), x.numel() // channels)
        everyone = gather_with_gradients(torch.cat([mean, variance, count])[None], self.ranks)
        means, variances, counts = everyone.split([channels, channels, 1], dim=1)
        total = counts.sum()
        mean = (counts / total * means).sum(0)
        # within the ranks and between them; a mean of squares less a squared mean would cancel
        variance = (counts / total * (variances + (means - mean) ** 2)).sum(0)
        if self.running_mean is not None:
            self._remember(mean, variance * total / (total - 1))
        shape = (1, channels, *[1] * (x.ndim - 2))
        scale = (variance + self.eps).rsqrt()
        if self.weight is not None:
            scale = scale * self.weight
        normalised = (x - mean.view(shape)) * scale.view(shape)
        if self.bias is not None:
            normalised = normalised + self.bias.view(shape)
        return normalised.to(input.dtype)

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        for buffer, value in ((self.running_mean, mean), (self.running_var, variance)):
            share = 1 / self.num_batches_tracked.to(buffer.dtype) if self.momentum is None else self.momentum
            buffer += share * (value.to(buffer.dtype) - buffer)


def synchronise_norms(module: nn.Module, ranks: Ranks) -> nn.Module:
    """The module with every batch norm in it synchronised; itself where there is one process. State keys stay.

    On CUDA these are torch's and timm's own, whose kernels are faster. Raises UsageError for others.
    """
    if ranks.world == 1:
        return module
    unknown = {type(norm).__name__ for norm in module.modules() if isinstance(norm, _BatchNorm) and not _is_known(norm)}
    if unknown:
        raise UsageError(
            f"several processes cannot share the statistics of {', '.join(sorted(unknown))}",
            hint="train this student in one process, or choose one with ordinary batch norms or without any",
        )
    if ranks.device.type == "cuda":
        converted: nn.Module = convert_sync_batchnorm(module)
        return converted
    return _replaced(module, ranks)


def _is_known(norm: nn.Module) -> bool:
    return type(norm) in _KNOWN


def _replaced(module: nn.Module, ranks: Ranks) -> nn.Module:
    if isinstance(module, _BatchNorm):
        return SynchronisedNorm(module, ranks)
    for name, child in module.named_children():
        setattr(module, name, _replaced(child, ranks))
    return module
