"""Synchronised batch norms: two processes give what one gives of all rows."""

import copy

import pytest
import timm
import torch
from torch import nn

from featurecache.errors import UsageError
from student.distribute import distribute
from student.parallel import Ranks
from student.synced_norm import SynchronisedNorm, synchronise_norms

CLOSE = {"rtol": 1e-9, "atol": 1e-10}


def small(name):
    torch.manual_seed(0)
    if name == "vectors":
        return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6, momentum=None, eps=0.1), nn.Linear(6, 3)).double()
    if name == "plain":
        norms = nn.BatchNorm2d(5, affine=False), nn.BatchNorm2d(5, track_running_stats=False, momentum=0.3)
        return nn.Sequential(nn.Conv2d(3, 5, 3), *norms, nn.Flatten(), nn.LazyLinear(2)).double()
    return timm.create_model(name, num_classes=3).double()


def inputs_for(name):
    draw = torch.Generator().manual_seed(1)
    shape = (6, 4) if name == "vectors" else (6, 3, 32, 32)
    return torch.randn(shape, generator=draw, dtype=torch.float64) * 3 + 20


def passes(ranks, name, cut):
    """Outputs, gradients of inputs and weights, and state after two steps; the first rank has `cut` of the rows."""
    torch.use_deterministic_algorithms(True)
    network, everything = small(name), inputs_for(name)
    network(everything[:2])  # lazy layers know their width
    network = synchronise_norms(network, ranks)
    assert ranks.world == 1 or not any(isinstance(item, nn.modules.batchnorm._BatchNorm) for item in network.modules())
    rows = slice(None) if ranks.world == 1 else [slice(cut), slice(cut, None)][ranks.rank]
    inputs = everything[rows].clone().requires_grad_()
    trained = distribute(network, ranks)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-6)
    for _ in range(2):
        outputs = trained(inputs)
        weights = torch.arange(18, dtype=torch.float64).view(6, 3).div(100)[rows, : outputs.shape[1]]
        optimizer.zero_grad()
        inputs.grad = None
        (weights * outputs**2).sum().mul(ranks.world).backward()  # DDP averages
        optimizer.step()
    gradients = [item.grad for item in network.parameters()]
    evaluated = network.eval()(inputs).detach()
    return outputs.detach(), inputs.grad / ranks.world, gradients, network.state_dict(), evaluated


@pytest.mark.parametrize(
    ("name", "cut"),
    [("vectors", 2), ("plain", 3), ("test_resnet", 3), ("mobilenetv3_small_050", 3)],
)
def test_two_processes_normalise_as_one(pair, name, cut):
    outputs, inputs, gradients, state, evaluated = passes(Ranks.alone(), name, cut)
    found = pair.run(passes, name, cut)
    for number, wanted in ((0, outputs), (1, inputs)):
        torch.testing.assert_close(torch.cat([item[number] for item in found]), wanted, **CLOSE)
    if name != "plain":  # without running statistics each rank evaluates with its own
        torch.testing.assert_close(torch.cat([item[4] for item in found]), evaluated, **CLOSE)
    for _, _, other_gradients, other_state, _ in found:
        torch.testing.assert_close(other_gradients, gradients, **CLOSE)
        assert list(other_state) == list(state)
        torch.testing.assert_close(other_state, state, **CLOSE)


def half(ranks):
    norm = synchronise_norms(nn.BatchNorm1d(4), ranks)
    return norm(torch.arange(8.0).view(2, 4).bfloat16() + ranks.rank), norm.running_var


def test_bfloat16_is_normalised_in_float32(pair):
    inputs = torch.arange(8.0).view(2, 4)
    wanted = nn.BatchNorm1d(4)(torch.cat([inputs, inputs + 1])).bfloat16()
    found = pair.run(half)
    assert torch.equal(torch.cat([outputs for outputs, _ in found]), wanted)
    assert found[0][1].dtype == torch.float32


def test_one_process_changes_nothing_and_shares_what_it_takes_over():
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    assert synchronise_norms(network, Ranks.alone()) is network
    norm = network[1]
    taken = SynchronisedNorm(norm, Ranks.alone())
    assert taken.weight is norm.weight and taken.running_mean is norm.running_mean
    inputs = torch.randn(5, 4)
    torch.testing.assert_close(taken(inputs), copy.deepcopy(nn.BatchNorm1d(4))(inputs))


class OwnNorm(nn.BatchNorm2d):
    pass


def test_a_norm_of_another_kind_is_refused():
    with pytest.raises(UsageError, match="statistics of OwnNorm"):
        synchronise_norms(nn.Sequential(OwnNorm(3)), Ranks(0, 2, torch.device("cpu")))
