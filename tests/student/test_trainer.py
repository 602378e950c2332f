"""The training loop: one step by hand, learning, resuming to the last bit, and what it refuses."""

import itertools
import math

import pytest
import torch

from featurecache.errors import FeatureCacheError, UsageError
from student.settings import TrainSettings
from student.trainer import Step, Validated, evaluate_objective, train
from tests.student.small_student import make_data, make_parts
from tests.student.two_ranks import whole


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("cache"))


def run(loop):
    return list(loop)


def state(*modules):
    return [value.clone() for module in modules for value in module.state_dict().values()]


def same(left, right):
    return len(left) == len(right) and all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def test_one_step_is_adamw_on_the_clipped_gradient_of_the_weighted_sum(data):
    rate, decay, clip = 0.01, 0.1, 0.05
    student, objective = make_parts("kl(temperature=2):0.5,ce:2")
    before = {name: value.clone() for name, value in student.named_parameters()}
    settings = TrainSettings(
        steps=1, batch_size=16, learning_rate=rate, weight_decay=decay, warmup=0.0, clip=clip, seed=4
    )
    step, *_ = run(train(student, objective, data, settings))

    batch = next(data.shuffled(16, seed=4, start=0, stop=1))
    by_hand, _ = make_parts("kl(temperature=2):0.5,ce:2")
    outputs = by_hand(batch.inputs)
    teacher = (batch.targets["logits"] / 2).softmax(1)
    kl = 4 * (teacher * (teacher.log() - (outputs["logits"] / 2).softmax(1).log())).sum(1).mean()
    ce = -outputs["labels"].softmax(1).log()[torch.arange(16), batch.labels].mean()
    loss = 0.5 * kl + 2 * ce
    loss.backward()
    norm = math.sqrt(sum(float(value.grad.pow(2).sum()) for value in by_hand.parameters()))
    assert norm > clip
    for name, value in by_hand.named_parameters():
        gradient = value.grad * clip / norm
        expected = before[name] * (1 - rate * (decay if value.ndim > 1 else 0))
        expected = expected - rate * gradient / (gradient.abs() + 1e-8)  # both moments are one gradient old
        torch.testing.assert_close(student.get_parameter(name).data, expected.data, rtol=1e-4, atol=2e-5)
    assert step.step == 1 and step.epoch == 0 and step.learning_rate == rate
    torch.testing.assert_close(step.losses["loss"], loss.detach())
    torch.testing.assert_close(step.losses["kl"], kl.detach())
    torch.testing.assert_close(step.losses["ce"], ce.detach())


def test_training_learns_what_it_is_given(data):
    student, objective = make_parts("kl(temperature=1),ce,cosine")
    settings = TrainSettings(steps=240, batch_size=16, learning_rate=0.02)
    before = evaluate_objective(student, objective, data, settings)
    events = run(train(student, objective, data, settings, validation=data))
    after = events[-1].losses
    assert before["ce"] == pytest.approx(math.log(3), abs=0.2) and after["ce"] < 0.1
    assert after["kl"] < before["kl"] / 2 and after["cosine"] < before["cosine"] / 2
    assert not student.training


def test_every_step_is_told_and_a_validation_at_each_interval_and_at_the_end(data):
    student, objective = make_parts()
    settings = TrainSettings(steps=10, batch_size=16, interval=4)
    events = run(train(student, objective, data, settings, validation=data))
    assert [event.step for event in events if isinstance(event, Step)] == list(range(1, 11))
    assert [event.step for event in events if isinstance(event, Validated)] == [4, 8, 10]
    assert [event.epoch for event in events if isinstance(event, Step)] == [0] * 4 + [1] * 4 + [2] * 2
    assert sorted(events[-1].losses) == ["ce", "kl", "loss"]


def test_the_interval_is_an_epoch_or_a_hundred_steps(data):
    student, objective = make_parts()
    events = run(train(student, objective, data, TrainSettings(steps=102, batch_size=16), validation=data))
    assert [event.step for event in events if isinstance(event, Validated)] == [100, 102]


def test_validation_losses_are_means_over_rows_whatever_the_batches(data):
    student, objective = make_parts()
    few, all_at_once = (
        evaluate_objective(student, objective, data, TrainSettings(steps=1, batch_size=size)) for size in (7, 64)
    )
    assert few == pytest.approx(all_at_once, rel=1e-5)
    batch = next(data.in_order(64))
    with torch.no_grad():
        total, parts = objective(student.eval()(batch.inputs), batch)
    assert all_at_once == pytest.approx({"loss": float(total), **{name: float(v) for name, v in parts.items()}})


def interrupted(data, path, settings, *, dropout, after, text="kl(temperature=1),ce", validation=None):
    """The weights of a run that was stopped after some steps, and of one that went on from its checkpoint."""
    first = make_parts(text, dropout=dropout)
    loop = train(*first, data, settings, validation=validation, checkpoint=path)
    for event in loop:
        if event.step == after:
            loop.close()
    second = make_parts(text, dropout=dropout, seed=99)
    torch.manual_seed(123)  # another process
    events = run(train(*second, data, settings, validation=validation, checkpoint=path, resume=True))
    return state(*second), events


def undisturbed(data, settings, *, dropout, text="kl(temperature=1),ce", validation=None):
    parts = make_parts(text, dropout=dropout)
    run(train(*parts, data, settings, validation=validation))
    return state(*parts)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_a_resumed_run_ends_with_the_same_bits(data, tmp_path, precision):
    settings = TrainSettings(steps=14, batch_size=16, interval=4, learning_rate=0.01, precision=precision)
    text = "kl(temperature=1),ce,align-uniform,infonce(negatives=5),crd(negatives=9)"
    data = type(data)(
        data.source, data.input, samples=data.samples, labels=data.labels, rows=data.rows, reader=data.reader,
        outputs=data.outputs, bank_rows=5,
    )  # fmt: skip
    path = tmp_path / "last"
    found, events = interrupted(data, path, settings, dropout=0.0, after=10, text=text)
    assert events[0].step == 9
    assert same(found, undisturbed(data, settings, dropout=0.0, text=text))


@pytest.mark.parametrize("validates", [False, True])
def test_a_resumed_run_has_the_same_dropout(data, tmp_path, validates):
    settings = TrainSettings(steps=14, batch_size=16, interval=4, learning_rate=0.01)
    given = {"dropout": 0.3, "validation": data if validates else None}
    found, _ = interrupted(data, tmp_path / "last", settings, after=10, **given)
    assert same(found, undisturbed(data, settings, **given))


@pytest.mark.parametrize("dropout", [0.0, 0.3], ids=["plain", "dropout"])
def test_validation_never_changes_the_training(data, dropout):
    settings = TrainSettings(steps=9, batch_size=16, interval=2, learning_rate=0.01)
    text = "kl(temperature=1),ce,crd(negatives=9)"
    without = undisturbed(data, settings, dropout=dropout, text=text)
    assert same(undisturbed(data, settings, dropout=dropout, text=text, validation=data), without)


def test_dropout_is_off_in_validation_and_on_again_after_it(data):
    student, objective = make_parts(dropout=0.5)
    settings = TrainSettings(steps=4, batch_size=16, interval=2)
    student.register_forward_hook(lambda module, *_: modes.append((module.training, torch.is_grad_enabled())))
    modes = []
    run(train(student, objective, data, settings, validation=data))
    learns, judges = [(True, True)] * 2, [(False, False)] * 4  # two batches a round, and the 64 rows in four
    assert modes == [*learns, *judges] * 2 and not student.training
    assert evaluate_objective(student, objective, data, settings) == evaluate_objective(
        student, objective, data, settings
    )


def test_resuming_a_finished_run_changes_nothing(data, tmp_path):
    settings = TrainSettings(steps=4, batch_size=16)
    parts = make_parts()
    run(train(*parts, data, settings, checkpoint=tmp_path / "last"))
    again = make_parts(seed=5)
    assert run(train(*again, data, settings, checkpoint=tmp_path / "last", resume=True)) == []
    assert same(state(*again), state(*parts))


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_checkpoint(data, tmp_path):
    path = tmp_path / "last"
    student, objective = make_parts("mse,ce")
    settings = TrainSettings(steps=6, batch_size=16, interval=2)
    loop = train(student, objective, data, settings, checkpoint=path)
    for _ in range(3):
        next(loop)
    kept = whole(path)
    batch = next(data.shuffled(16, seed=0, start=3, stop=4))
    student.backbone.layer.bias.data.fill_(math.nan)
    with pytest.raises(FeatureCacheError, match=r"not finite at step 4 \(loss, mse, ce\)") as caught:
        run(loop)
    keys = [data.reader.keys[row] for row in batch.rows]
    assert f"its batch was {keys[0]!r}, {keys[1]!r}, {keys[2]!r}, {keys[3]!r} and 12 more" in caught.value.message
    assert "the last checkpoint is from before this" in caught.value.hint
    assert whole(path) == kept and kept


def test_a_finite_loss_with_a_gradient_that_is_not_finite_is_no_checkpoint(data, tmp_path):
    path = tmp_path / "last"
    student, objective = make_parts()
    student.backbone.layer.bias.register_hook(lambda gradient: gradient * math.nan)
    with pytest.raises(FeatureCacheError, match=r"not finite at step 1 \(weights\)"):
        run(train(student, objective, data, TrainSettings(steps=1, batch_size=16), checkpoint=path))
    assert not path.exists()


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_autocast_learns_too(data, precision):
    student, objective = make_parts()
    settings = TrainSettings(steps=120, batch_size=16, learning_rate=0.02, precision=precision)
    events = run(train(student, objective, data, settings, validation=data))
    assert events[-1].losses["ce"] < 0.3
    assert all(value.dtype == torch.float32 for value in student.parameters())


def test_without_a_limit_the_gradient_is_not_clipped(data):
    weights = []
    for clip in (0.0, 1e9):
        parts = make_parts()
        run(train(*parts, data, TrainSettings(steps=3, batch_size=16, clip=clip)))
        weights.append(state(*parts))
    for free, limited in zip(*weights, strict=True):
        torch.testing.assert_close(free, limited)


def test_the_rate_follows_the_schedule(data):
    settings = TrainSettings(steps=20, batch_size=16, learning_rate=0.1, warmup=0.2)
    rates = [event.learning_rate for event in train(*make_parts(), data, settings)]
    assert rates[:5] == pytest.approx([0.02, 0.04, 0.06, 0.08, 0.1])
    assert all(earlier > later for earlier, later in itertools.pairwise(rates[4:])) and rates[-1] < 0.002


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"steps": 0}, "at least one step of one sample"),
        ({"batch_size": 0}, "at least one step of one sample"),
        ({"precision": "float8"}, "unknown precision 'float8'"),
        ({"learning_rate": 0.0}, "learning rate must be positive"),
        ({"learning_rate": math.nan}, "learning rate must be positive"),
        ({"weight_decay": -0.1}, "decay and clip not negative"),
        ({"warmup": 1.5}, "warm-up between 0 and 1"),
        ({"clip": -1.0}, "decay and clip not negative"),
    ],
)
def test_impossible_settings_are_refused(given, message):
    with pytest.raises(UsageError, match=message):
        TrainSettings(**{"steps": 1, **given})


class Prepared:
    """Batches made before: any data that gives the same ones will do."""

    def __init__(self, data, settings):
        self.device = data.device
        self.per_epoch = data.steps_per_epoch(settings.batch_size)
        self.batches = list(data.shuffled(settings.batch_size, seed=settings.seed, start=0, stop=settings.steps))

    def __len__(self):
        return self.per_epoch

    def steps_per_epoch(self, batch_size):
        return self.per_epoch

    def shuffled(self, batch_size, *, seed, start, stop, part=(0, 1)):
        return iter(self.batches[start:stop])

    def in_order(self, batch_size, *, first=0, every=1):
        return iter(self.batches)

    def keys_of(self, rows):
        return [str(row) for row in rows.tolist()]


def test_data_in_memory_trains_to_the_same_bits(data):
    settings = TrainSettings(steps=9, batch_size=16, learning_rate=0.01)
    parts = make_parts()
    run(train(*parts, Prepared(data, settings), settings))
    assert same(state(*parts), undisturbed(data, settings, dropout=0.0))
