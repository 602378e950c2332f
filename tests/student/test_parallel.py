"""Several processes: the group, what is gathered, and the same training as in one process."""

import pytest
import torch
from torch import nn

from featurecache.errors import UsageError
from featurecache.types import NO_LABEL, TopLogits
from student.distribute import average_gradients, clip_gradients, copy_from_first, distribute
from student.objectives.base import Batch, Dimensions, Mix
from student.objectives.weighted import make_objective
from student.parallel import Ranks, gather_batch, gather_outputs, gather_with_gradients, mean_over_ranks

ROWS, DIM, CLASSES = 8, 6, 5


class Vectors(nn.Module):
    """A student of vectors, float64 throughout."""

    def __init__(self, heads=("embedding", "logits", "labels")) -> None:
        super().__init__()
        self.layer = nn.Linear(4, DIM)
        self.heads = nn.ModuleDict({name: nn.Linear(DIM, DIM if name == "embedding" else CLASSES) for name in heads})
        self.double()

    def forward(self, inputs):
        features = torch.tanh(self.layer(inputs["vectors"]))
        return {"features": features, **{name: head(features) for name, head in self.heads.items()}}


def batch_of(step, rows, *, sparse=False, mixed=False):
    """The same global batch in every process; `rows` of it."""
    draw = torch.Generator().manual_seed(step)
    vectors, embedding, logits, bank = (
        torch.randn(*shape, generator=draw, dtype=torch.float64)
        for shape in ((ROWS, 4), (ROWS, DIM), (ROWS, CLASSES), (3, DIM))
    )
    labels = torch.randint(CLASSES, (ROWS,), generator=draw)
    labels[: ROWS // 2] = NO_LABEL  # the first of two ranks has none
    labels[-1] = NO_LABEL
    values, indices = logits.topk(2)
    top = TopLogits(values[rows], indices[rows], logits.logsumexp(1, keepdim=True)[rows], (1.0,), CLASSES)
    share = torch.rand(ROWS, generator=draw, dtype=torch.float64)
    return Batch(
        inputs={"vectors": vectors[rows]},
        targets={"embedding": embedding[rows], "logits": top if sparse else logits[rows]},
        labels=labels[rows],
        rows=torch.arange(ROWS)[rows] // 2,
        mix=Mix(labels.flip(0)[rows], share[rows]) if mixed else None,
        bank={"embedding": bank},
    )


def train(ranks, text, options):
    """Losses, last gradients and weights after four steps."""
    torch.manual_seed(ranks.rank)  # each begins elsewhere, until the first one's weights are copied
    objective = make_objective(
        text, Dimensions(features=DIM, targets={"embedding": DIM, "logits": CLASSES}), ["embedding", "logits", "labels"]
    ).double()
    student = Vectors(objective.heads)
    copy_from_first(objective, ranks)
    student_of_all = distribute(student, ranks)
    weights = [*student.parameters(), *objective.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=0.01)
    own = slice(ranks.rank * ROWS // ranks.world, (ranks.rank + 1) * ROWS // ranks.world)
    losses = []
    for step in range(4):
        batch = batch_of(step, own, **options)
        outputs = gather_outputs(student_of_all(batch.inputs), ranks)
        total, _ = objective(outputs, gather_batch(batch, ranks))
        optimizer.zero_grad()
        total.backward()
        average_gradients(objective.parameters(), ranks)
        clip_gradients(weights, max_norm=0.5)
        optimizer.step()
        losses.append(total.detach())
    return {"losses": losses, "gradients": [item.grad for item in weights], "weights": [item.data for item in weights]}


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("align-uniform", {}),
        ("infonce(negatives=3)", {}),
        ("ce", {}),
        ("ce,kl,align-uniform", {"mixed": True}),
        ("kl(temperature=1)", {"sparse": True}),
    ],
    ids=["align-uniform", "infonce", "ce", "sum", "sparse"],
)
def test_two_processes_train_as_one(pair, text, options):
    one = train(Ranks.alone(), text, options)
    for found in pair.run(train, text, options):
        for name, wanted in one.items():
            for left, right in zip(found[name], wanted, strict=True):
                torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-11)


def gather(ranks, tensor):
    own = tensor[ranks.rank * 3 : ranks.rank * 3 + 3].clone().requires_grad_()
    gathered = gather_with_gradients(own, ranks)
    (gathered**2 * (ranks.rank + 1)).sum().backward()
    return gathered.detach(), own.grad


def test_a_gathered_tensor_has_the_summed_gradient(pair):
    tensor = torch.arange(12.0, dtype=torch.float64).view(6, 2)
    for rank, (gathered, gradient) in enumerate(pair.run(gather, tensor)):
        assert torch.equal(gathered, tensor)
        assert torch.equal(gradient, 2 * 3 * tensor[rank * 3 : rank * 3 + 3])  # 1 + 2 times 2x


def gather_texts(ranks):
    """Texts of three tokens on one rank, of five on the other."""
    longest = 3 + 2 * ranks.rank
    mask = torch.ones(2, longest, dtype=torch.bool)
    mask[1, 2:] = False
    hidden = torch.full((2, longest, 4), 1.0 + ranks.rank, requires_grad=True)
    maps = torch.full((2, 3, longest, longest), 1.0 + ranks.rank)
    batch = Batch(
        inputs={"ids": torch.zeros(2, longest, dtype=torch.int64), "mask": mask},
        targets={
            "hidden": hidden.detach().half() * 10,
            "embedding": torch.full((2, 7), ranks.rank, dtype=torch.float64),
        },
        labels=torch.tensor([ranks.rank, NO_LABEL]),
        rows=torch.tensor([10, 11]) + ranks.rank,
    )
    dims = {"hidden": (1,), "maps": (2, 3)}
    outputs = gather_outputs({"hidden": hidden, "maps": maps, "same": maps}, ranks, token_dims=dims)
    outputs["hidden"].sum().backward()
    return (
        gather_batch(batch, ranks, token_dims=dims),
        {name: item.detach() for name, item in outputs.items()},
        hidden.grad,
    )


def test_texts_of_other_lengths_are_padded(pair):
    for rank, (batch, outputs, gradient) in enumerate(pair.run(gather_texts)):
        real = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 1, 1], [1, 1, 0, 0, 0]], dtype=torch.bool)
        there = torch.tensor([3, 3, 5, 5])[:, None] > torch.arange(5)
        value = torch.tensor([1.0, 1.0, 2.0, 2.0])[:, None] * there
        assert torch.equal(batch.inputs["mask"], real) and list(batch.inputs) == ["mask"]
        assert torch.equal(outputs["hidden"], value[:, :, None].expand(4, 5, 4))
        assert torch.equal(outputs["maps"], (value[:, None, :, None] * there[:, None, None]).expand(4, 3, 5, 5))
        assert torch.equal(outputs["same"][:2, :, :3, :3], torch.ones(2, 3, 3, 3))
        assert torch.equal(batch.targets["hidden"], 10 * outputs["hidden"].half())
        assert torch.equal(batch.targets["embedding"], torch.tensor([0, 0, 1, 1.0]).double()[:, None].expand(4, 7))
        assert batch.labels.tolist() == [0, -1, 1, -1] and batch.rows.tolist() == [10, 11, 11, 12]
        assert torch.equal(gradient, torch.full((2, 3 + 2 * rank, 4), 2.0))


def averaged(ranks):
    return mean_over_ranks(
        {"a": 1.0 + ranks.rank, "b": torch.tensor(0.5)}, {"a": 2 + ranks.rank, "b": 1 - ranks.rank}, ranks
    )


def test_validation_averages_over_all_rows(pair):
    assert pair.run(averaged) == [{"a": 3 / 5, "b": 1.0}] * 2
    assert mean_over_ranks({"a": 3.0}, {"a": 4}, Ranks.alone()) == {"a": 0.75}


def test_one_process_does_nothing():
    ranks = Ranks.alone()
    batch, student = batch_of(0, slice(None)), Vectors()
    outputs = student(batch.inputs)
    assert gather_batch(batch, ranks) is batch and distribute(student, ranks) is student
    assert gather_outputs(outputs, ranks) == outputs
    ranks.wait()
    ranks.close()
    assert not torch.distributed.is_initialized() and ranks.is_first


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"RANK": "0"}, "lacks WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT"),
        ({"RANK": "2", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "no process has RANK '2'"),
        ({"RANK": "0", "WORLD_SIZE": "two", "LOCAL_RANK": "0"}, "WORLD_SIZE 'two'"),
    ],
)
def test_half_an_environment_is_refused(monkeypatch, variables, message):
    address = {"MASTER_ADDR": "localhost", "MASTER_PORT": "1"} if len(variables) > 1 else {}
    clear(monkeypatch, {**variables, **address})
    with pytest.raises(UsageError, match=message) as caught:
        Ranks.from_environment("cpu")
    assert "torchrun" in caught.value.hint


def test_without_torchrun_or_with_one_process_it_is_alone(monkeypatch):
    clear(monkeypatch, {})
    assert Ranks.from_environment("cpu") == Ranks.alone()
    clear(monkeypatch, {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "x", "MASTER_PORT": "1"})
    assert Ranks.from_environment("cpu") == Ranks.alone()


def test_other_devices_are_refused(monkeypatch):
    clear(monkeypatch, {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "x", "MASTER_PORT": "1"})
    with pytest.raises(UsageError, match="cannot train on mps"):
        Ranks.from_environment("mps")


def clear(monkeypatch, variables):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
