"""Everything a training run needs to go on: no pickle, written whole or not at all.

A checkpoint is a folder that torch.distributed.checkpoint writes: each rank's tensors in a safetensors file of its own,
sharded ones with their offsets in its header; and checkpoint.json. What one number of ranks saved, another can load.
"""

import contextlib
import json
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from featurecache.errors import CorruptCacheError
from featurecache.types import Json
from student.parallel import Ranks
from student.publish import being_written, fresh_folder, newest, publish

__all__ = [
    "has_checkpoint",
    "load_checkpoint",
    "load_weights",
    "read_facts",
    "save_checkpoint",
    "save_tensors",
]

_FORMAT = "featurecache checkpoint 1"
_FACTS = "checkpoint.json"
_UNREADABLE = (OSError, safetensors.SafetensorError, ValueError, KeyError, TypeError, AttributeError)
_ALONE = Ranks.alone()


def has_checkpoint(path: Path) -> bool:
    """Whether there is a whole one at the path."""
    return newest(path) is not None


def save_checkpoint(
    path: Path,
    modules: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    *,
    step: int,
    scaler: torch.amp.GradScaler,
    device: torch.device,
    facts: Json | None = None,
    ranks: Ranks = _ALONE,
) -> None:
    """Weights, buffers, states of optimizer, loss scaler and random numbers after `step` optimizer steps.

    `path` is a folder, that of all ranks; every rank saves, and none goes on before it stands. `modules` are the bare
    ones, without DistributedDataParallel. `facts` are plain JSON for `read_facts`; the first rank's are kept.
    """
    tensors = {f"{name}.{key}": value for name, module in modules.items() for key, value in module.state_dict().items()}
    names = _parameter_names(modules)
    for parameter, state in optimizer.state.items():
        tensors |= {f"optimizer.{names[parameter]}.{key}": torch.as_tensor(value) for key, value in state.items()}
    tensors[f"random.cpu.{ranks.rank}"] = torch.get_rng_state()
    if device.type == "cuda":
        tensors[f"random.cuda.{ranks.rank}"] = torch.cuda.get_rng_state(device)
    if ranks.is_first:
        fresh_folder(path)
    ranks.wait()
    folder = being_written(path)
    _write(_separate(tensors), folder, ranks)
    if ranks.is_first:
        told = {"format": _FORMAT, "step": step, "world": ranks.world, "scaler": scaler.state_dict()}
        sizes = {file.name: file.stat().st_size for file in sorted(folder.iterdir())}
        _write_synced(folder / _FACTS, json.dumps({**told, "files": sizes, "facts": facts or {}}, indent=1))
        publish(path)
    ranks.wait()


def load_checkpoint(
    path: Path,
    modules: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    *,
    scaler: torch.amp.GradScaler,
    device: torch.device,
    ranks: Ranks = _ALONE,
    seed: int = 0,
) -> int:
    """Restore what `save_checkpoint` saved into equal modules and optimizer; returns the step.

    How many ranks there are, and whether the modules are sharded, need not be as it was; a rank that was not there
    draws its random numbers from (seed, rank, step). Raises CorruptCacheError if it is damaged or another model's.
    """
    folder, facts = _open(path)
    shapes = _saved_shapes(folder)
    try:
        wanted: dict[str, Tensor] = {
            f"{name}.{key}": value for name, module in modules.items() for key, value in module.state_dict().items()
        }
        _check_names(wanted, shapes)
        moments = _empty_moments(shapes, _parameter_names(modules))
        draws = _empty_draws(device, ranks) if ranks.rank < int(facts["world"]) else {}
        if f"random.cuda.{ranks.rank}" not in shapes:
            draws.pop(f"random.cuda.{ranks.rank}", None)
        _read({**wanted, **draws, **{name: moment for name, _, _, moment in moments}}, folder, ranks)
        for name, module in modules.items():
            module.load_state_dict({key: wanted[f"{name}.{key}"] for key in module.state_dict()})
        _restore_optimizer(optimizer, moments)
        if scaler.is_enabled():
            scaler.load_state_dict(facts["scaler"])
        _restore_draws(draws, device, (seed, ranks.rank, int(facts["step"])))
        return int(facts["step"])
    except (RuntimeError, *_UNREADABLE) as error:
        hint = "train into a new --out, or give the settings this run was begun with"
        raise CorruptCacheError(f"{path} does not fit this model: {error}", hint=hint) from error


def read_facts(path: Path) -> Json:
    """The `facts` that were saved. Raises CorruptCacheError if there is no checkpoint, or it is damaged."""
    facts: Json = _open(path)[1]["facts"]
    return facts


def load_weights(path: Path, module: nn.Module) -> None:
    """Load a student's own weights from a safetensors file. Raises CorruptCacheError if they do not fit."""
    try:
        tensors = safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise CorruptCacheError(f"cannot read {path}: {error}") from error
    try:
        module.load_state_dict(tensors)
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


def _parameter_names(modules: Mapping[str, nn.Module]) -> dict[Tensor, str]:
    """By name, since a parameter's number depends on how the optimizer groups them."""
    found: dict[Tensor, str] = {}
    for name, module in modules.items():
        for key, parameter in module.named_parameters():
            found.setdefault(parameter, f"{name}.{key}")
    return found


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous, and none in another's memory: safetensors refuses both."""
    seen: set[int] = set()
    own = {}
    for name, tensor in tensors.items():
        value = tensor.detach()
        if not hasattr(value, "full_tensor"):  # a shard is copied by who writes it
            value = value.contiguous()
            place = value.untyped_storage().data_ptr()
            value = value.clone() if place in seen else value
            seen.add(place)
        own[name] = value
    return own


def _write(tensors: dict[str, Tensor], folder: Path, ranks: Ranks) -> None:
    dcp = _dcp()
    writer = dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True)
    with _real_errors():
        dcp.save(tensors, storage_writer=writer, no_dist=ranks.world == 1)


def _read(tensors: dict[str, Tensor], folder: Path, ranks: Ranks) -> None:
    """Into the tensors themselves."""
    dcp = _dcp()
    reader = dcp.HuggingFaceStorageReader(str(folder))
    with _real_errors():
        dcp.load(tensors, storage_reader=reader, no_dist=ranks.world == 1)


def _dcp() -> Any:
    from torch.distributed import checkpoint  # takes seconds, and who only exports needs none of it

    return checkpoint


@contextlib.contextmanager
def _real_errors() -> Iterator[None]:
    """What failed on some rank, instead of the traceback of every rank; and no warning that one process is alone."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            yield
    except _dcp().CheckpointException as error:
        raise next(iter(error.failures.values()))[0] from None


def _write_synced(file: Path, text: str) -> None:
    with file.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())


def _open(path: Path) -> tuple[Path, Json]:
    """The newest whole folder and what it says of itself, its files being as long as they were."""
    folder = newest(path)
    if folder is None:
        raise CorruptCacheError(f"cannot read {path}: there is no checkpoint in it")
    try:
        facts: Json = json.loads((folder / _FACTS).read_text(encoding="utf-8"))
        if facts["format"] != _FORMAT:
            raise ValueError(f"its format is {facts['format']!r}, not {_FORMAT!r}")
        for name, size in facts["files"].items():
            if (folder / name).stat().st_size != size:
                raise ValueError(f"{name} is not {size} bytes long")
        return folder, facts
    except _UNREADABLE as error:
        raise CorruptCacheError(f"cannot read {path}: {error}") from error


def _saved_shapes(folder: Path) -> dict[str, torch.Size]:
    try:
        found = _dcp().HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    except _UNREADABLE as error:
        raise CorruptCacheError(f"cannot read {folder}: {error}") from error
    return {name: getattr(item, "size", torch.Size()) for name, item in found.items()}


def _check_names(wanted: Mapping[str, Tensor], saved: Mapping[str, torch.Size]) -> None:
    missing = [name for name in wanted if name not in saved]
    # what is saved without being asked for would be left out in silence
    extra = [name for name in saved if name not in wanted and not name.startswith(("optimizer.", "random."))]
    if missing or extra:
        raise ValueError(f"it lacks {missing[:3]}" if missing else f"it has {extra[:3]} besides")


_Moment = tuple[str, Tensor, str, Tensor]
"""Name in the checkpoint, whose it is, which of its states, and where to read it to."""


def _empty_moments(saved: Mapping[str, torch.Size], names: Mapping[Tensor, str]) -> list[_Moment]:
    """Sharded as the parameter is, where it has its shape; on the CPU else, as a count of steps."""
    parameters = {name: parameter for parameter, name in names.items()}
    found: list[_Moment] = []
    for name, size in saved.items():
        if name.startswith("optimizer."):
            owner, _, key = name.removeprefix("optimizer.").rpartition(".")
            parameter = parameters[owner]
            like_it = size == parameter.shape and key != "step"
            found.append((name, parameter, key, torch.zeros_like(parameter) if like_it else torch.zeros(size)))
    return found


def _restore_optimizer(optimizer: torch.optim.Optimizer, moments: list[_Moment]) -> None:
    """States only; the groups' settings come from the run's own settings."""
    numbers = {item: at for at, item in enumerate(p for group in optimizer.param_groups for p in group["params"])}
    states: dict[int, dict[str, Tensor]] = {}
    for _, parameter, key, moment in moments:
        states.setdefault(numbers[parameter], {})[key] = moment.detach()
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})


def _empty_draws(device: torch.device, ranks: Ranks) -> dict[str, Tensor]:
    draws = {f"random.cpu.{ranks.rank}": torch.empty_like(torch.get_rng_state())}
    if device.type == "cuda":
        draws[f"random.cuda.{ranks.rank}"] = torch.empty_like(torch.cuda.get_rng_state(device))
    return draws


def _restore_draws(draws: Mapping[str, Tensor], device: torch.device, identity: tuple[int, int, int]) -> None:
    if not draws:
        torch.manual_seed(int(np.random.SeedSequence(identity).generate_state(1, np.uint64)[0]))
    for name, state in draws.items():
        if name.startswith("random.cpu."):
            torch.set_rng_state(state)
        else:
            torch.cuda.set_rng_state(state, device)
