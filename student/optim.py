"""How a student is optimised: AdamW (Loshchilov and Hutter, ICLR 2019, arXiv 1711.05101), warm-up then cosine."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from featurecache.errors import UsageError
from student.distribute import unmixed_groups

__all__ = ["layer_scales", "learning_rate", "make_optimizer", "set_learning_rate", "trainable"]


def make_optimizer(
    modules: Iterable[nn.Module], *, lr: float, weight_decay: float, scales: Mapping[nn.Parameter, float] | None = None
) -> torch.optim.AdamW:
    """AdamW over the modules' trainable parameters: matrices decay; biases, norms and scalars do not.

    `scales` has the part of the learning rate that a parameter gets, 1 for those it leaves out. The order is that of
    the modules and of their parameters, so a saved state fits again; shared ones count once.
    """
    grouped: dict[tuple[float, bool], list[nn.Parameter]] = {(1.0, True): [], (1.0, False): []}
    for item in trainable(modules):
        grouped.setdefault(((scales or {}).get(item, 1.0), item.ndim >= 2), []).append(item)
    groups = [
        {"params": items, "weight_decay": weight_decay if decays else 0.0, "scale": scale}
        for (scale, decays), items in grouped.items()
    ]
    return torch.optim.AdamW(
        unmixed_groups(groups), lr=lr, fused=True
    )  # 3 to 5 times faster than foreach or a loop, on a CPU too


def layer_scales(student: nn.Module, decay: float) -> dict[nn.Parameter, float]:
    """The part of the learning rate of each of the backbone's parameters: `decay` for its last layer, its square for
    the one below, and so on down (Bao et al., ICLR 2022, arXiv 2106.08254). Heads and projectors have all of it.

    Raises UsageError for a student whose backbone does not say how deep its layers lie.
    """
    backbone: Any = getattr(student, "backbone", None)
    if not hasattr(backbone, "depths"):
        raise UsageError("this student does not say how deep its layers lie", hint="train it without a layer decay")
    depths: Mapping[str, int] = backbone.depths()
    return {weight: decay ** (max(depths.values()) + 1 - depths[name]) for name, weight in backbone.named_parameters()}


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group its part of the rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["scale"]


def learning_rate(step: int, *, steps: int, warmup: int, peak: float, final: float = 0.0) -> float:
    """The rate of optimizer step 0, 1, ...: linear over `warmup` steps, `peak` at step `warmup`, cosine to `final`.

    The first step is not wasted on a rate of 0, and any step from `steps` on has `final` (Loshchilov and Hutter,
    ICLR 2017, arXiv 1608.03983, without restarts).
    """
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    return final + (peak - final) * (1 + math.cos(math.pi * progress)) / 2


def trainable(modules: Iterable[nn.Module]) -> list[nn.Parameter]:
    """The parameters of the modules that are trained, in order, shared ones once."""
    found = (parameter for module in modules for parameter in module.parameters() if parameter.requires_grad)
    return list(dict.fromkeys(found))
