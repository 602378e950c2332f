"""What a training run can do besides its plain steps, and several students in one run."""

import copy
import itertools

import pytest
import torch
from safetensors.torch import load_file

from featurecache.errors import FeatureCacheError, UsageError
from student.optim import layer_scales
from student.parallel import Ranks
from student.randomness import Randomness
from student.settings import TrainSettings
from student.trainee import Trainee
from student.trainer import Step, Validated, evaluate_objective, train, train_together
from tests.student.small_student import make_data, make_parts

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("cache"))


def weights(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def trained(data, parts=None, **given):
    """A student after training, and the events."""
    extra = {name: given.pop(name) for name in ("validation", "checkpoint", "resume") if name in given}
    student, objective = parts or make_parts()
    settings = TrainSettings(**{"steps": 12, "batch_size": 16, "learning_rate": 0.01, **given})
    return student, list(train(student, objective, data, settings, **extra))


class Halves:
    """The batches of other data, each in two."""

    def __init__(self, whole, batch_size):
        self.device, self.whole, self.batch_size = whole.device, whole, batch_size

    def __len__(self):
        return len(self.whole)

    def steps_per_epoch(self, batch_size):
        return 2 * self.whole.steps_per_epoch(self.batch_size)

    def keys_of(self, rows):
        return self.whole.keys_of(rows)

    def in_order(self, batch_size, *, first=0, every=1):
        return self.whole.in_order(batch_size)

    def shuffled(self, batch_size, *, seed, start, stop, part=(0, 1)):
        assert start % 2 == stop % 2 == 0
        for batch in self.whole.shuffled(self.batch_size, seed=seed, start=start // 2, stop=stop // 2):
            for half in (slice(0, batch_size), slice(batch_size, None)):
                cut = copy.copy(batch)
                for name in ("inputs", "targets"):
                    object.__setattr__(cut, name, {key: value[half] for key, value in getattr(batch, name).items()})
                object.__setattr__(cut, "labels", batch.labels[half])
                object.__setattr__(cut, "rows", batch.rows[half])
                yield cut


def test_gradients_of_several_batches_make_one_step(data):
    whole, events = trained(data, batch_size=16)
    parts, halves = trained(Halves(data, 16), batch_size=8, accumulate=2)
    for name, value in weights(whole).items():
        torch.testing.assert_close(parts.state_dict()[name], value, rtol=1e-4, atol=1e-5)
    steps = [[event for event in found if isinstance(event, Step)] for found in (events, halves)]
    assert [step.step for step in steps[1]] == list(range(1, 13))
    assert [step.epoch for step in steps[1]] == [step.epoch for step in steps[0]]
    for ours, theirs in zip(*steps, strict=True):
        for name, value in ours.losses.items():
            torch.testing.assert_close(theirs.losses[name], value, rtol=1e-4, atol=1e-5)


def test_a_resumed_run_goes_on_at_the_right_batch_when_it_accumulates(data, tmp_path):
    given = {"accumulate": 3, "batch_size": 8, "interval": 4}
    whole, _ = trained(data, **given)
    student, objective = make_parts()
    settings = TrainSettings(steps=12, learning_rate=0.01, **given)
    loop = train(student, objective, data, settings, checkpoint=tmp_path / "last")
    for event in loop:
        if event.step == 6:
            loop.close()
    again, events = trained(data, make_parts(seed=8), checkpoint=tmp_path / "last", resume=True, **given)
    assert events[0].step == 5 and same(weights(again), weights(whole))


def test_averaged_weights_are_what_is_validated_and_kept(data):
    decay, steps = 0.7, 8
    student, objective = make_parts()
    settings = TrainSettings(steps=steps, batch_size=16, learning_rate=0.01, ema=decay, interval=steps)
    loop = train(student, objective, data, settings, validation=data)
    average = None
    for step in range(1, steps + 1):
        next(loop)
        # the decay rises with the steps, as timm's: 1 - (1 + s) ** (-2/3), s counted from the second step
        rises = 0.0 if step == 1 else min(1 - step ** (-2 / 3), decay)
        now = {name: value.double() for name, value in student.state_dict().items()}
        average = now if average is None else {n: rises * average[n] + (1 - rises) * now[n] for n in now}
    (validated,) = list(loop)
    for name, value in student.state_dict().items():
        torch.testing.assert_close(value.double(), average[name], rtol=1e-5, atol=1e-6)
    assert validated.losses == evaluate_objective(student, objective, data, settings)
    assert not student.training


def test_a_resumed_run_has_the_same_average(data, tmp_path):
    given = {"ema": 0.9, "interval": 4}
    whole, _ = trained(data, **given)
    settings = TrainSettings(steps=12, batch_size=16, learning_rate=0.01, **given)
    loop = train(*make_parts(), data, settings, checkpoint=tmp_path / "last")
    for event in loop:
        if event.step == 9:
            loop.close()
    again, _ = trained(data, make_parts(seed=8), checkpoint=tmp_path / "last", resume=True, **given)
    assert same(weights(again), weights(whole))


def test_deeper_layers_learn_faster_by_their_depth(data):
    student, objective = make_parts()
    scales = {name: layer_scales(student, 0.5).get(value, 1.0) for name, value in student.named_parameters()}
    assert scales["backbone.embedding.weight"] == 0.25 and scales["backbone.layer.weight"] == 0.5
    assert scales["heads.logits.weight"] == 1
    before = weights(student)
    list(train(student, objective, data, TrainSettings(steps=1, batch_size=16, weight_decay=0.0, warmup=0.0, clip=0.0,
                                                       learning_rate=0.01, layer_decay=0.5)))  # fmt: skip
    for name, scale in scales.items():  # Adam's first step has the size of the rate wherever there is a gradient
        moved = (student.state_dict()[name] - before[name]).abs().max()
        assert float(moved) == pytest.approx(0.01 * scale, rel=1e-3)


def test_a_student_without_depths_has_no_layer_decay(data):
    _, objective = make_parts()
    settings = TrainSettings(steps=1, layer_decay=0.5)
    with pytest.raises(UsageError, match="does not say how deep"):
        Trainee(torch.nn.Linear(2, 2), objective, settings, ranks=Ranks.alone())


def too_fast(steps=60, **more):
    """Settings with which validation soon becomes worse."""
    return {"steps": steps, "learning_rate": 1.0, "warmup": 0.0, "clip": 0.0, "interval": 2, **more}


def test_patience_stops_the_run_and_keeps_the_best_weights(data, tmp_path):
    _, everything = trained(data, validation=data, **too_fast())
    losses = [event.losses["loss"] for event in everything if isinstance(event, Validated)]
    stop = next(at for at in range(2, len(losses)) if min(losses[: at - 1]) <= min(losses[at - 1 : at + 1]))
    best = stop - 2
    assert losses[best] == min(losses[: stop + 1]) and stop + 1 < len(losses)

    path = tmp_path / "last"
    student, events = trained(data, validation=data, checkpoint=path, **too_fast(patience=2))
    assert [event.losses["loss"] for event in events if isinstance(event, Validated)] == losses[: stop + 1]
    found = evaluate_objective(student, make_parts()[1], data, TrainSettings(steps=1, batch_size=16))
    assert found["loss"] == pytest.approx(losses[best], rel=1e-6)
    assert same(load_file(tmp_path / "best.safetensors"), weights(student))

    again, events = trained(data, make_parts(seed=7), validation=data, checkpoint=path, resume=True,
                            **too_fast(patience=2))  # fmt: skip
    assert events == [] and same(weights(again), weights(student))


def test_a_resumed_run_stops_where_an_undisturbed_one_does(data, tmp_path):
    whole, events = trained(data, validation=data, checkpoint=tmp_path / "a/last", **too_fast(patience=2))
    last = events[-1].step
    path = tmp_path / "b/last"
    loop = train(*make_parts(), data, TrainSettings(batch_size=16, **too_fast(patience=2)), validation=data,
                 checkpoint=path)  # fmt: skip
    for event in loop:
        if event.step == last - 3:
            loop.close()
    again, events = trained(data, make_parts(seed=7), validation=data, checkpoint=path, resume=True,
                            **too_fast(patience=2))  # fmt: skip
    assert events[-1].step == last and same(weights(again), weights(whole))


def test_stopping_early_needs_rows_to_validate_on_and_a_place_for_the_best(data, tmp_path):
    settings = TrainSettings(steps=4, patience=1)
    with pytest.raises(UsageError, match="rows are needed to validate on"):
        train(*make_parts(), data, settings, checkpoint=tmp_path / "last")
    with pytest.raises(UsageError, match="must be kept somewhere"):
        train(*make_parts(), data, settings, validation=data)


def test_a_validation_that_is_not_finite_is_never_the_best(data, tmp_path):
    settings = TrainSettings(steps=4, patience=2)
    trainee = Trainee(*make_parts(), settings, ranks=Ranks.alone(), checkpoint=tmp_path / "last")
    for loss in (float("nan"), 2.0, float("nan"), 3.0):
        trainee.note_validation(loss)
    assert trainee.best == 2.0 and trainee.has_stopped


def side_by_side(data, texts, settings, *, folder=None, dropout=0.3, seeds=(0, 1), resume=False, validation=None):
    """Trainees of these objectives, with random numbers of their own."""
    trainees = []
    for number, (text, seed) in enumerate(zip(texts, seeds, strict=True)):
        student, objective = make_parts(text, dropout=dropout, seed=seed)
        checkpoint = folder / f"{number}" / "last" if folder else None
        trainees.append(
            Trainee(
                student, objective, settings, ranks=Ranks.alone(), checkpoint=checkpoint, randomness=Randomness(CPU)
            )
        )
        if resume:
            trainees[-1].resume()
    return trainees, train_together(trainees, data, settings, validation=validation)


TEXTS = ("kl(temperature=1),ce", "align-uniform,cosine")


def test_students_learn_beside_each_other_what_they_learn_alone(data):
    settings = TrainSettings(steps=9, batch_size=16, learning_rate=0.01, interval=4)
    trainees, loop = side_by_side(data, TEXTS, settings, validation=data)
    events = list(loop)
    for number, (text, seed) in enumerate(zip(TEXTS, (0, 1), strict=True)):
        alone = make_parts(text, dropout=0.3, seed=seed)
        told = list(train(*alone, data, settings, validation=data))
        assert same(weights(trainees[number].student), weights(alone[0]))
        own = [event for event in events if event.student == number]
        assert [event.step for event in own] == [event.step for event in told]
        assert [dict(event.losses) for event in own] == [dict(event.losses) for event in told]


def test_one_student_may_stop_before_the_others(data, tmp_path):
    settings = TrainSettings(batch_size=16, **too_fast(patience=2))
    trainees, loop = side_by_side(data, TEXTS, settings, folder=tmp_path, validation=data)
    events = list(loop)
    last = [max(event.step for event in events if event.student == number) for number in (0, 1)]
    assert last[0] != last[1]
    for number, text in enumerate(TEXTS):
        alone = make_parts(text, dropout=0.3, seed=number)
        *_, end = train(*alone, data, settings, validation=data, checkpoint=tmp_path / f"alone-{number}" / "last")
        assert last[number] == end.step and same(weights(trainees[number].student), weights(alone[0]))


@pytest.mark.parametrize("saved", [0, 1], ids=["none", "one"])
def test_a_run_that_ended_between_two_checkpoints_goes_on(data, tmp_path, monkeypatch, saved):
    settings = TrainSettings(steps=9, batch_size=16, learning_rate=0.01, interval=4)
    whole, loop = side_by_side(data, TEXTS, settings)
    list(loop)
    _, loop = side_by_side(data, TEXTS, settings, folder=tmp_path)
    saves = itertools.count()
    keep = Trainee.save

    def save(trainee):
        if next(saves) == 2 + saved:  # two at step 4, then those of step 8
            raise KeyboardInterrupt
        keep(trainee)

    with monkeypatch.context() as patch:
        patch.setattr(Trainee, "save", save)
        with pytest.raises(KeyboardInterrupt):
            list(loop)
    again, loop = side_by_side(data, TEXTS, settings, folder=tmp_path, seeds=(5, 6), resume=True)
    events = list(loop)
    assert [event.student for event in events][: 4 if saved else 2] == ([1] * 4 if saved else [0, 1])
    assert all(same(weights(ours.student), weights(theirs.student)) for ours, theirs in zip(again, whole, strict=True))


def test_a_loss_that_is_not_finite_is_seen_within_ten_steps(data):
    student, objective = make_parts("mse")
    loop = train(student, objective, data, TrainSettings(steps=60, batch_size=16, interval=60))
    told = list(itertools.islice(loop, 3))
    student.backbone.layer.bias.data.fill_(float("nan"))
    with pytest.raises(FeatureCacheError, match=r"not finite at step 4 \(loss, mse\)"):
        told.extend(loop)
    assert told[-1].step == 10


def test_a_student_that_cannot_be_compiled_runs_as_it_is_and_says_so(data, monkeypatch):
    def fails(*_args, **_kwargs):
        raise ValueError("no compiler\nand more of it")

    plain, _ = trained(data, make_parts(dropout=0.3))
    monkeypatch.setattr(torch, "compile", lambda module: torch._dynamo.optimize(fails)(module))
    student, objective = make_parts(dropout=0.3)
    settings = TrainSettings(steps=12, batch_size=16, learning_rate=0.01, compile=True)
    trainee = Trainee(student, objective, settings, ranks=Ranks.alone())
    list(train_together([trainee], data, settings))
    assert trainee.warning.startswith("the student is not compiled, but runs as it is: ")
    assert "no compiler and more" in trainee.warning and "\n" not in trainee.warning
    assert same(weights(student), weights(plain))


def test_where_channels_lie_changes_no_result(data):
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(144, 5)).double()
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    expected = network(images)
    settings = TrainSettings(steps=1, channels_last=True)
    Trainee(network, make_parts()[1], settings, ranks=Ranks.alone())
    assert network[0].weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(network(images), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "given",
    [
        {"shard": True, "precision": "float16"},
        {"shard": True, "ema": 0.9},
        {"accumulate": 0},
        {"ema": 1.0},
        {"ema": -0.1},
        {"layer_decay": 0.0},
        {"layer_decay": 1.1},
        {"patience": -1},
    ],
)
def test_impossible_settings_are_refused(given):
    with pytest.raises(UsageError):
        TrainSettings(steps=1, **given)
