"""Everything a training run needs to go on, as one safetensors file: no pickle, written whole or not at all."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from featurecache.errors import CorruptCacheError
from featurecache.types import Json

__all__ = ["load_checkpoint", "load_weights", "save_checkpoint", "save_tensors"]


@dataclass(frozen=True, slots=True)
class _State:
    tensors: dict[str, Tensor]
    facts: Json


def save_checkpoint(
    path: Path,
    modules: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    *,
    step: int,
    scaler: torch.amp.GradScaler,
    device: torch.device,
    facts: Json | None = None,
) -> None:
    """Weights, buffers, states of optimizer, loss scaler and random numbers after `step` optimizer steps."""
    tensors = {f"{name}.{key}": value for name, module in modules.items() for key, value in module.state_dict().items()}
    for number, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{key}": torch.as_tensor(value) for key, value in state.items()}
    tensors["random.cpu"] = torch.get_rng_state()
    if device.type == "cuda":
        tensors["random.cuda"] = torch.cuda.get_rng_state(device)
    save_tensors(path, tensors, {"step": step, "scaler": scaler.state_dict(), **(facts or {})})


def load_checkpoint(
    path: Path,
    modules: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    *,
    scaler: torch.amp.GradScaler,
    device: torch.device,
) -> tuple[int, Json]:
    """Restore what `save_checkpoint` saved into equal modules and optimizer; returns the step and the facts.

    Raises CorruptCacheError if the file is damaged or belongs to another model.
    """
    state = _read(path, device)
    try:
        for name, module in modules.items():
            module.load_state_dict(_below(state.tensors, name))
        _restore_optimizer(optimizer, _below(state.tensors, "optimizer"))
        if scaler.is_enabled():
            scaler.load_state_dict(state.facts["scaler"])
        torch.set_rng_state(state.tensors["random.cpu"].cpu())
        step = int(state.facts["step"])
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        hint = "train into a new --out, or give the settings this run was begun with"
        raise CorruptCacheError(f"{path} does not fit this model: {error}", hint=hint) from error
    if device.type == "cuda" and "random.cuda" in state.tensors:
        torch.cuda.set_rng_state(state.tensors["random.cuda"].cpu(), device)
    return step, state.facts


def load_weights(path: Path, module: nn.Module) -> None:
    """Load a student's own weights. Raises CorruptCacheError if they do not fit."""
    try:
        module.load_state_dict(_read(path, torch.device("cpu")).tensors)
    except RuntimeError as error:
        raise CorruptCacheError(f"{path} does not fit this model: {error}") from error


def save_tensors(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any] | None = None) -> None:
    """Write a safetensors file beside its place, sync it, then rename it over what stands there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    # clones, since safetensors refuses tensors that share memory
    own = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    safetensors.torch.save_file(own, partial, metadata={"facts": json.dumps(facts or {})})
    with partial.open("rb+") as file:
        os.fsync(file.fileno())
    partial.replace(path)


def _read(path: Path, device: torch.device) -> _State:
    try:
        with safetensors.safe_open(path, framework="pt", device=str(device)) as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)
            return _State(tensors, json.loads((file.metadata() or {}).get("facts", "{}")))
    except (OSError, safetensors.SafetensorError, ValueError) as error:
        raise CorruptCacheError(f"cannot read {path}: {error}") from error


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) + 1 :]: tensor for name, tensor in tensors.items() if name.startswith(f"{prefix}.")}


def _restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Adam's moments and step counts by parameter number; the groups' settings come from the run's own settings."""
    states: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        number, _, key = name.partition(".")
        states.setdefault(int(number), {})[key] = tensor
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})
