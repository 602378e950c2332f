"""Two processes train as one does: the same losses, validations and weights, from the same batches in one order."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn

from student.distribute import full_weights
from student.models import Student
from student.parallel import Ranks
from student.settings import TrainSettings
from student.trainer import Step, Validated, train
from tests.student.small_student import BagOfBytes, make_data, make_parts

TEXT = "kl(temperature=1),ce,align-uniform,infonce(negatives=5),crd(negatives=9)"


class WithNorm(BagOfBytes):
    """With batch statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(self.features)

    def forward(self, inputs):
        return torch.tanh(self.norm(super().forward(inputs)))


def run(ranks, folder, settings, norm=False, resume=False, stop=None, text=TEXT):
    """Total losses of every step, of every validation, and the weights in the end."""
    torch.set_num_threads(1)
    data = make_data(Path(folder) / f"cache-{ranks.rank}-{ranks.world}", bank_rows=5)
    labels = torch.from_numpy(data.labels)
    labels[::3] = -1  # so that the ranks have unequal numbers of them
    data.labels = labels.numpy()
    student, objective = make_parts(text)
    if norm:
        torch.manual_seed(1)
        student = Student(WithNorm(), student.widths)
    checkpoint = Path(folder) / "checkpoints" / f"{resume or ranks.world}" / "last"
    loop = train(
        student, objective, data, settings, validation=data, checkpoint=checkpoint, resume=bool(resume), ranks=ranks
    )
    losses, validated = [], []
    for event in loop:
        if isinstance(event, Step):
            losses.append(event.losses["loss"].item())
        elif isinstance(event, Validated):
            validated.append(dict(event.losses))
        if stop and event.step == stop:
            loop.close()
    return losses, validated, full_weights(student)


def settings(**given):
    return TrainSettings(**{"steps": 20, "batch_size": 16, "learning_rate": 0.01, "interval": 8, **given})


def agree(found, expected, rtol=2e-5):
    for ours, theirs in zip(found, expected, strict=True):
        if isinstance(ours, dict):
            assert ours.keys() == theirs.keys()
            for name, value in ours.items():
                torch.testing.assert_close(value, theirs[name], rtol=rtol, atol=rtol)
        else:
            assert ours == pytest.approx(theirs, rel=rtol)


@pytest.mark.parametrize(
    ("norm", "given"),
    [
        (False, {}),
        (True, {}),
        (False, {"accumulate": 2, "ema": 0.9, "layer_decay": 0.7}),
        (False, {"shard": True}),
    ],
    ids=["plain", "batch norm", "accumulated, averaged", "sharded"],
)
def test_two_processes_train_as_one(pair, tmp_path, norm, given):
    asked = settings(**given)
    losses, validated, weights = run(Ranks.alone(), tmp_path, asked, norm=norm)
    first, second = pair.run(run, tmp_path, asked, norm)
    rtol = 2e-5
    assert len(losses) == 20 and first[0] == second[0]
    agree(first[0], losses, rtol)
    agree(first[1], validated, rtol)
    agree([first[2]], [second[2]], 1e-7)
    agree([first[2]], [weights], 20 * rtol)


def test_one_process_goes_on_with_what_two_began_and_the_other_way_round(pair, tmp_path):
    _, validated, weights = run(Ranks.alone(), tmp_path / "whole", settings())
    begun = pair.run(run, tmp_path, settings(), False, False, 12)
    assert [len(losses) for losses, _, _ in begun] == [12, 12]
    losses, after, found = run(Ranks.alone(), tmp_path, settings(), resume=2)
    assert len(losses) == 12  # from the checkpoint at step 8
    agree(after, validated[1:])
    agree([found], [weights], 1e-3)
    run(Ranks.alone(), tmp_path, settings(), stop=12)
    for losses, after, found in pair.run(run, tmp_path, settings(), False, 1):
        assert len(losses) == 12
        agree(after, validated[1:])
        agree([found], [weights], 1e-3)


def test_all_stop_early_together_with_the_same_best_weights(pair, tmp_path):
    asked = dataclasses.replace(settings(steps=60, learning_rate=1.0, warmup=0.0, clip=0.0, interval=2), patience=2)
    text = "kl(temperature=1),ce"
    _, expected, weights = run(Ranks.alone(), tmp_path, asked, text=text)
    assert len(expected) < 30
    for _, validated, found in pair.run(_with_text, tmp_path, asked, text):
        assert len(validated) == len(expected)
        agree(validated[:2], expected[:2], 1e-4)
        agree([found], [weights], 1e-3)


def _with_text(ranks, folder, asked, text):
    return run(ranks, folder, asked, text=text)
