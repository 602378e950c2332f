"""Checkpoints: whole or not at all, data only, and refused where they do not fit."""

import json

import pytest
import safetensors.torch
import torch

from featurecache.errors import CorruptCacheError
from student.checkpoint import load_checkpoint, load_weights, save_checkpoint, save_tensors
from student.optim import make_optimizer
from tests.student.small_student import make_parts

CPU = torch.device("cpu")


def scaler(*, enabled=False):
    return torch.amp.GradScaler("cpu", enabled=enabled, init_scale=8.0, growth_interval=3)


def trained(seed=0, steps=3):
    """Modules and optimizer after some steps."""
    student, objective = make_parts("align-uniform,ce", seed=seed)
    modules = {"student": student, "objective": objective}
    optimizer = make_optimizer(modules.values(), lr=0.01, weight_decay=0.1)
    for _ in range(steps):
        loss = sum((parameter**2).sum() for module in modules.values() for parameter in module.parameters())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return modules, optimizer


def tensors_of(modules, optimizer):
    states = optimizer.state_dict()["state"]
    weights = [value for module in modules.values() for value in module.state_dict().values()]
    return [*weights, *(value for number in sorted(states) for _, value in sorted(states[number].items()))]


def test_everything_comes_back(tmp_path):
    modules, optimizer = trained()
    draws = scaler(enabled=True)
    draws.scale(torch.ones(1))
    torch.manual_seed(11)
    save_checkpoint(tmp_path / "a.safetensors", modules, optimizer, step=3, scaler=draws, device=CPU)
    expected = torch.rand(4)
    others, other_optimizer = trained(seed=1, steps=1)
    other_draws = torch.amp.GradScaler("cpu", init_scale=2.0)
    given = {"scaler": other_draws, "device": CPU}
    assert load_checkpoint(tmp_path / "a.safetensors", others, other_optimizer, **given)[0] == 3
    assert torch.equal(torch.rand(4), expected)
    assert other_draws.state_dict() == draws.state_dict()
    found, wanted = tensors_of(others, other_optimizer), tensors_of(modules, optimizer)
    assert all(torch.equal(left, right) for left, right in zip(found, wanted, strict=True))
    assert len(wanted) == 4 * len(list(tensors_of(modules, trained(steps=0)[1])))


def test_the_file_is_safetensors_and_holds_no_pickle(tmp_path):
    save_checkpoint(tmp_path / "a.safetensors", *trained(), step=3, scaler=scaler(), device=CPU)
    content = (tmp_path / "a.safetensors").read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert json.loads(header.pop("__metadata__")["facts"]) == {"step": 3, "scaler": {}}
    assert {"student.heads.labels.weight", "optimizer.0.exp_avg", "optimizer.0.step", "random.cpu"} <= set(header)
    assert {item["dtype"] for item in header.values()} == {"F32", "U8"}
    assert b"PK\x03\x04" not in content[:4] and b"ctorch" not in content


@pytest.mark.parametrize("keep", [0, 7, 300, -1])
def test_a_truncated_file_is_refused(tmp_path, keep):
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, *trained(), step=3, scaler=scaler(), device=CPU)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CorruptCacheError, match="cannot read"):
        load_checkpoint(path, *trained(), scaler=scaler(), device=CPU)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(CorruptCacheError, match="cannot read"):
        load_checkpoint(tmp_path / "none.safetensors", *trained(), scaler=scaler(), device=CPU)


def strip(path, prefix):
    """The same file without the tensors of that prefix."""
    tensors = {name: value for name, value in safetensors.torch.load_file(path).items() if not name.startswith(prefix)}
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    safetensors.torch.save_file(tensors, path, metadata=metadata)


@pytest.mark.parametrize("prefix", ["student.", "objective.parts.align", "random."])
def test_a_file_that_lacks_something_is_refused(tmp_path, prefix):
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, *trained(), step=3, scaler=scaler(), device=CPU)
    strip(path, prefix)
    with pytest.raises(CorruptCacheError, match="does not fit this model"):
        load_checkpoint(path, *trained(), scaler=scaler(), device=CPU)


def test_another_models_file_is_refused(tmp_path):
    modules, optimizer = trained()
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, {"student": modules["student"]}, optimizer, step=3, scaler=scaler(), device=CPU)
    student, _ = make_parts("kl,ce")
    with pytest.raises(CorruptCacheError, match="does not fit this model"):
        load_checkpoint(
            path, {"student": student}, make_optimizer([student], lr=1.0, weight_decay=0.0), scaler=scaler(), device=CPU
        )
    save_tensors(path, {"anything": torch.zeros(3)})
    with pytest.raises(CorruptCacheError, match="does not fit this model"):
        load_checkpoint(path, modules, optimizer, scaler=scaler(), device=CPU)
    with pytest.raises(CorruptCacheError, match="does not fit this model"):
        load_weights(path, student)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    save_tensors(path, {"a": torch.zeros(3)}, {"step": 1})
    before = path.read_bytes()

    def fail(tensors, name, metadata):
        name.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", fail)
    with pytest.raises(OSError, match="no space"):
        save_tensors(path, {"a": torch.ones(3)})
    assert path.read_bytes() == before


def test_nothing_is_left_beside_the_file_and_shared_memory_is_fine(tmp_path):
    value = torch.arange(6.0)
    save_tensors(tmp_path / "deep" / "a.safetensors", {"whole": value, "view": value[::2], "same": value})
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["a.safetensors"]
    loaded = safetensors.torch.load_file(tmp_path / "deep" / "a.safetensors")
    assert torch.equal(loaded["view"], value[::2]) and torch.equal(loaded["same"], value)
