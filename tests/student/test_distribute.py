"""A student sharded over two processes: the same training, and checkpoints that any number of processes loads."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from student.checkpoint import load_checkpoint, save_checkpoint
from student.distribute import clip_gradients, copy_from_first, distribute, full_weights, shard, unmixed_groups
from student.parallel import Ranks, gather_with_gradients

CPU = torch.device("cpu")


class Blocks(nn.Module):
    """Blocks of odd sizes, so that the shards differ."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(5, 7)
        self.layers = nn.ModuleList([nn.Sequential(nn.Linear(7, 9), nn.Tanh(), nn.Linear(9, 7)) for _ in range(2)])
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, inputs):
        hidden = self.stem(inputs)
        for layer in self.layers:
            hidden = hidden + layer(hidden)
        return hidden


def make(ranks, way, seed=0):
    """Modules, what is called, and the optimizer."""
    torch.manual_seed(seed + ranks.rank)
    student, objective = Blocks().double(), nn.Linear(7, 1).double()
    copy_from_first(objective, ranks)
    called = shard(student, ranks) if way == "sharded" else distribute(student, ranks)
    groups = [{"params": [*student.parameters(), *objective.parameters()], "weight_decay": 0.1}]
    optimizer = torch.optim.AdamW(unmixed_groups(groups), lr=0.01, fused=True)
    return {"student": student, "objective": objective}, called, optimizer


def steps(ranks, modules, called, optimizer, numbers):
    """The gradient's norm before it was clipped, at each step."""
    weights = [parameter for module in modules.values() for parameter in module.parameters()]
    norms = []
    for number in numbers:
        inputs = torch.randn(6, 5, generator=torch.Generator().manual_seed(number), dtype=torch.float64)
        own = inputs.chunk(ranks.world)[ranks.rank]
        loss = (modules["objective"](gather_with_gradients(called(own), ranks)) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        norms.append(clip_gradients(weights, max_norm=0.5).item())
        optimizer.step()
        modules["student"].seen += 1
    return norms


def weights_of(modules):
    return {f"{name}.{key}": value for name, module in modules.items() for key, value in full_weights(module).items()}


def train(ranks, way, saved=None, loaded=None):
    """Two steps, or two more from a checkpoint; the norms, the weights and the next random number."""
    modules, called, optimizer = make(ranks, way, seed=50 if loaded else 0)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    start = 0
    if loaded:
        given = {"scaler": scaler, "device": CPU, "ranks": ranks, "seed": 3}
        start = load_checkpoint(Path(loaded), modules, optimizer, **given)
        after_load = torch.rand(1).item()
    norms = steps(ranks, modules, called, optimizer, range(start, start + 2))
    if saved:
        torch.manual_seed(100 + ranks.rank)
        given = {"scaler": scaler, "device": CPU, "ranks": ranks}
        save_checkpoint(Path(saved), modules, optimizer, step=start + 2, **given)
    return norms, weights_of(modules), after_load if loaded else None


def on(pair, world, *given):
    return pair.run(train, *given) if world == 2 else [train(Ranks.alone(), *given)]


def drawn(seed):
    torch.manual_seed(seed)
    return torch.rand(1).item()


@pytest.fixture(scope="module")
def one():
    """Four steps of one process."""
    modules, called, optimizer = make(Ranks.alone(), "copied")
    norms = steps(Ranks.alone(), modules, called, optimizer, range(4))
    return norms, copy.deepcopy(weights_of(modules))


@pytest.mark.parametrize(
    ("before", "after"),
    [((1, "copied"), (2, "sharded")), ((2, "sharded"), (1, "copied")), ((2, "sharded"), (2, "sharded")),
     ((2, "copied"), (2, "copied")), ((2, "copied"), (2, "sharded"))],
    ids=str,
)  # fmt: skip
def test_training_goes_on_with_other_processes(pair, tmp_path, one, before, after):
    path = str(tmp_path / "last")
    first = on(pair, before[0], before[1], path)
    second = on(pair, after[0], after[1], None, path)
    norms, weights = one
    for rank, (later, found, draw) in enumerate(second):
        assert [*first[0][0], *later] == pytest.approx(norms, rel=1e-9)
        assert list(found) == list(weights)
        torch.testing.assert_close(found, weights, rtol=1e-9, atol=1e-12)
        if rank < before[0]:
            assert draw == drawn(100 + rank)
        else:
            assert draw not in {drawn(100), drawn(101), drawn(3), drawn(50 + rank)}
    assert max(norms) > 0.5  # some were clipped


def loaded_bits(ranks, path):
    modules, _, optimizer = make(ranks, "sharded", seed=9)
    save = make(ranks, "sharded", seed=1)
    steps(ranks, *save, range(2))
    given = {"scaler": torch.amp.GradScaler("cpu", enabled=False), "device": CPU, "ranks": ranks}
    save_checkpoint(Path(path), save[0], save[2], step=2, **given)
    load_checkpoint(Path(path), modules, optimizer, **given)
    (left, moments), (right, wanted) = (
        (weights_of(made), moments_of(made, its)) for made, its in ((modules, optimizer), (save[0], save[2]))
    )
    same = all(torch.equal(left[name], right[name]) for name in right)
    sharded = sum(hasattr(parameter, "full_tensor") for parameter in modules["student"].parameters())
    return same, all(torch.equal(moments[name], wanted[name]) for name in wanted), len(moments), sharded


def moments_of(modules, optimizer):
    return {
        f"{name}.{key}.{what}": value.full_tensor() if hasattr(value, "full_tensor") else value
        for name, module in modules.items()
        for key, parameter in module.named_parameters()
        for what, value in sorted(optimizer.state[parameter].items())
    }


def test_shards_come_back_bit_for_bit(pair, tmp_path):
    assert pair.run(loaded_bits, str(tmp_path / "last")) == [(True, True, 3 * 12, 10)] * 2
    files = sorted(file.name for file in (tmp_path / "last" / "1").iterdir())
    assert [name[:11] for name in files] == ["checkpoint.", "shard-00001", "shard-00002"]


def test_one_process_shards_nothing():
    student = Blocks()
    assert shard(student, Ranks.alone()) is student and not hasattr(student.stem.weight, "full_tensor")
    groups = [{"params": list(student.parameters()), "lr": 0.1}]
    assert unmixed_groups(groups) == groups
    student(torch.ones(2, 5)).sum().backward()
    wanted = torch.stack([parameter.grad.pow(2).sum() for parameter in student.parameters()]).sum().sqrt()
    assert clip_gradients(list(student.parameters()), max_norm=0.25) == pytest.approx(float(wanted))
    clipped = torch.stack([parameter.grad.pow(2).sum() for parameter in student.parameters()]).sum().sqrt()
    assert float(clipped) == pytest.approx(0.25, rel=1e-4)
