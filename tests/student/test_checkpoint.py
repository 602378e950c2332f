"""Checkpoints: whole or not at all, data only, and refused where they do not fit."""

import itertools
import json
import sys

import pytest
import safetensors.torch
import torch

from featurecache.errors import CorruptCacheError
from student.checkpoint import (
    has_checkpoint,
    load_checkpoint,
    load_weights,
    read_facts,
    save_checkpoint,
    save_tensors,
)
from student.optim import make_optimizer
from student.publish import newest
from tests.crash.children import kill_oneself, start, wait
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
    facts = {"best": 0.1, "waited": 2}
    save_checkpoint(tmp_path / "last", modules, optimizer, step=3, scaler=draws, device=CPU, facts=facts)
    expected = torch.rand(4)
    others, other_optimizer = trained(seed=1, steps=1)
    other_draws = torch.amp.GradScaler("cpu", init_scale=2.0)
    given = {"scaler": other_draws, "device": CPU}
    assert load_checkpoint(tmp_path / "last", others, other_optimizer, **given) == 3
    assert torch.equal(torch.rand(4), expected)
    assert other_draws.state_dict() == draws.state_dict()
    found, wanted = tensors_of(others, other_optimizer), tensors_of(modules, optimizer)
    assert all(torch.equal(left, right) for left, right in zip(found, wanted, strict=True))
    assert len(wanted) == 4 * len(list(tensors_of(modules, trained(steps=0)[1])))
    assert read_facts(tmp_path / "last") == facts


def saved(path, parts=None, step=3):
    """The folder of a checkpoint that was saved to the path."""
    save_checkpoint(path, *(parts or trained()), step=step, scaler=scaler(), device=CPU)
    return newest(path)


def test_the_files_are_safetensors_and_json_and_hold_no_pickle(tmp_path):
    folder = saved(tmp_path / "last")
    names = ["checkpoint.json", "shard-00001-model-00001-of-00001.safetensors"]
    assert sorted(file.name for file in folder.iterdir()) == names
    content = (folder / names[1]).read_bytes()
    facts = {"format": "featurecache checkpoint 1", "step": 3, "world": 1, "scaler": {}, "facts": {}}
    assert json.loads((folder / names[0]).read_text()) == {**facts, "files": {names[1]: len(content)}}
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert json.loads(header.pop("__metadata__")["DCP_SHARDING_INFO"]).keys() == header.keys()
    weight = "student.heads.labels.weight"
    assert {weight, f"optimizer.{weight}.exp_avg", f"optimizer.{weight}.step", "random.cpu.0"} <= set(header)
    assert {item["dtype"] for item in header.values()} == {"F32", "U8"}
    assert b"PK\x03\x04" not in content[:4] and b"ctorch" not in content


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
@pytest.mark.parametrize("number", [0, 1], ids=["facts", "tensors"])
def test_a_truncated_file_is_refused(tmp_path, number, keep):
    file = sorted(saved(tmp_path / "last").iterdir())[number]
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(CorruptCacheError, match="cannot read"):
        load_checkpoint(tmp_path / "last", *trained(), scaler=scaler(), device=CPU)


@pytest.mark.parametrize("content", ["[]", "{}", '{"format": "another"}', '{"format": "featurecache checkpoint 1"}'])
def test_a_foreign_folder_is_refused(tmp_path, content):
    (saved(tmp_path / "last") / "checkpoint.json").write_text(content)
    with pytest.raises(CorruptCacheError, match="cannot read"):
        load_checkpoint(tmp_path / "last", *trained(), scaler=scaler(), device=CPU)


def test_bytes_that_are_no_safetensors_are_refused(tmp_path):
    file = sorted(saved(tmp_path / "last").iterdir())[1]
    file.write_bytes(b"\x80" * file.stat().st_size)
    with pytest.raises(CorruptCacheError, match="cannot read"):
        load_checkpoint(tmp_path / "last", *trained(), scaler=scaler(), device=CPU)


def test_where_there_is_none_there_is_none(tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("none", "empty"):
        assert not has_checkpoint(tmp_path / name)
        with pytest.raises(CorruptCacheError, match="there is no checkpoint"):
            load_checkpoint(tmp_path / name, *trained(), scaler=scaler(), device=CPU)
    saved(tmp_path / "last")
    assert has_checkpoint(tmp_path / "last")


def strip(folder, prefix):
    """The same checkpoint without the tensors of that prefix."""
    facts, path = sorted(folder.iterdir())
    tensors = {name: value for name, value in safetensors.torch.load_file(path).items() if not name.startswith(prefix)}
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    safetensors.torch.save_file(tensors, path, metadata=metadata)
    facts.write_text(json.dumps({**json.loads(facts.read_text()), "files": {path.name: path.stat().st_size}}))


@pytest.mark.parametrize("prefix", ["student.", "objective.parts.align", "random."])
def test_a_checkpoint_that_lacks_something_is_refused(tmp_path, prefix):
    strip(saved(tmp_path / "last"), prefix)
    with pytest.raises(CorruptCacheError, match="does not fit this model"):
        load_checkpoint(tmp_path / "last", *trained(), scaler=scaler(), device=CPU)


def test_another_models_checkpoint_is_refused(tmp_path):
    modules, optimizer = trained()
    bare = {"student": modules["student"]}
    saved(tmp_path / "bare", (bare, make_optimizer(bare.values(), lr=0.1, weight_decay=0.0)))
    other, _ = make_parts("kl,ce")
    optimizers = make_optimizer([other], lr=1.0, weight_decay=0.0), optimizer
    for found in (({"student": other}, optimizers[0]), (modules, optimizers[1])):
        with pytest.raises(CorruptCacheError, match="does not fit this model"):
            load_checkpoint(tmp_path / "bare", *found, scaler=scaler(), device=CPU)
    saved(tmp_path / "whole")
    with pytest.raises(CorruptCacheError, match=r"does not fit this model: it has .* besides"):
        load_checkpoint(tmp_path / "whole", bare, optimizer, scaler=scaler(), device=CPU)
    save_tensors(tmp_path / "a.safetensors", {"anything": torch.zeros(3)})
    with pytest.raises(CorruptCacheError, match="does not fit this model"):
        load_weights(tmp_path / "a.safetensors", other)


def test_groups_may_be_cut_otherwise_and_tensors_may_share_memory_or_lie_across(tmp_path):
    def make(split):
        torch.manual_seed(split)
        module = torch.nn.Conv2d(3, 4, 2).to(memory_format=torch.channels_last)
        module.twin = module.bias
        module.register_buffer("same", module.weight.detach())
        weights = list(module.parameters())
        return module, torch.optim.AdamW([{"params": weights[:1]}, {"params": weights[1:]}] if split else weights)

    (module, optimizer), (other, other_optimizer) = make(0), make(1)
    module(torch.ones(1, 3, 2, 2)).sum().backward()
    optimizer.step()
    saved(tmp_path / "last", ({"m": module}, optimizer))
    load_checkpoint(tmp_path / "last", {"m": other}, other_optimizer, scaler=scaler(), device=CPU)
    assert torch.equal(other.weight, module.weight) and torch.equal(other.bias, module.bias)
    for own, twin in zip(module.parameters(), other.parameters(), strict=True):
        assert all(torch.equal(value, other_optimizer.state[twin][key]) for key, value in optimizer.state[own].items())


def test_what_fails_on_the_way_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    saved(tmp_path / "last", step=1)

    def fail(tensors, metadata):
        raise OSError("no space left on device")

    monkeypatch.setattr(safetensors.torch, "save", fail)
    with pytest.raises(OSError, match="no space"):
        saved(tmp_path / "last", step=2)
    assert load_checkpoint(tmp_path / "last", *trained(), scaler=scaler(), device=CPU) == 1
    monkeypatch.undo()
    saved(tmp_path / "last", step=3)
    assert load_checkpoint(tmp_path / "last", *trained(), scaler=scaler(), device=CPU) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["last"]


def killed_at(path, number):
    """Save step 2 and then step 3, and be killed before the change of that number on the disk."""
    counted = itertools.count()

    def watch(event, arguments):
        changes = event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir") or (event == "open" and arguments[2] & 1)
        if changes and next(counted) == number:
            kill_oneself()

    sys.addaudithook(watch)
    parts = trained()
    for step in (2, 3):
        save_checkpoint(path, *parts, step=step, scaler=scaler(), device=CPU)


def test_after_a_kill_at_any_moment_there_is_a_whole_checkpoint(tmp_path):
    reached, codes = [], []
    for number in range(60):
        path = tmp_path / str(number) / "last"
        codes.append(wait(start(lambda path=path, number=number: killed_at(path, number))))
        assert path.exists() == has_checkpoint(path)
        parts = trained(seed=1)
        reached.append(load_checkpoint(path, *parts, scaler=scaler(), device=CPU) if path.exists() else 0)
        if path.exists():
            left, right = tensors_of(*parts), tensors_of(*trained())
            assert all(torch.equal(a, b) for a, b in zip(left, right, strict=True))
        save_checkpoint(path, *parts, step=9, scaler=scaler(), device=CPU)
        assert load_checkpoint(path, *parts, scaler=scaler(), device=CPU) == 9
        assert [item.name for item in path.parent.iterdir()] == ["last"] and len(list(path.iterdir())) == 1
        if codes[-1] == 0:
            break
    assert codes[-1] == 0 and set(codes[:-1]) == {-9} and len(codes) > 12
    assert reached == sorted(reached) and set(reached) == {0, 2, 3}


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
