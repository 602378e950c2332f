"""What is printed, and where: results laid out, progress as lines or bars."""

import pytest

from featurecache.errors import CorruptCacheError, UsageError
from pipelines.cli import console
from pipelines.events import Advance, Message


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves."""
    now = [1000.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    return now


def events(clock, *steps):
    """Yields each event after the seconds before it; ends with a result."""
    for seconds, event in steps:
        clock[0] += seconds
        yield event
    return {"done": True}


def test_facts_stand_in_columns(capsys):
    facts = {"cache": "x", "rows": 12345, "accuracy": 0.98765, "sealed": True, "limit": None}
    nested = {**facts, "splits": {"train": {"data": ["a", "b"], "invalid": {}}}}
    console.show(nested, as_json=False)
    assert capsys.readouterr().out.splitlines() == [
        "cache     x",
        "rows      12,345",
        "accuracy  0.9877",
        "sealed    yes",
        "limit     -",
        "splits",
        "  train",
        "    data     a, b",
        "    invalid  none",
    ]


def test_long_values_go_on_below_themselves():
    lines = console._lines({"kl": "needs logits; Hinton, Vinyals and Dean", "ce": "labels"}, width=30)
    assert lines == ["kl  needs logits; Hinton,", "    Vinyals and Dean", "ce  labels"]


def test_a_path_is_never_broken():
    path = "/a/" + "very-long-name/" * 8
    assert path in console._lines({"out": path}, width=40)[-1]


def test_lines_for_a_log(capsys, clock):
    steps = [
        (0, Message("teacher random")),
        (0, Advance("extract train", 100, 1000)),
        (10, Advance("extract train", 200, 1000)),
        (25, Advance("extract train", 450, 1000)),
        (5, Advance("extract train", 1000, 1000, facts={"invalid": 2})),
    ]
    assert console.follow(events(clock, *steps), interrupted="") == {"done": True}
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.splitlines() == [
        "teacher random",
        "extract train: 450/1,000 rows, 10/s, 55 s left",
        "extract train: 1,000/1,000 rows, 22/s, 40 s, invalid 2",
    ]


def test_rate_counts_from_where_a_resumed_run_began(clock):
    pace = console._Pace()
    assert pace.text(Advance("train", 900, 1000, "steps")) == "900/1,000 steps"
    clock[0] += 100
    assert pace.text(Advance("train", 910, 1000, "steps")) == "910/1,000 steps, 0.1/s, 15 min left"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "0 s"), (98.0, "98 s"), (100.0, "2 min"), (5900.0, "98 min"), (7500.0, "2 h 05 min")]
)
def test_durations(seconds, text):
    assert console.duration(seconds) == text


def test_interrupt_closes_the_run_and_says_how_to_go_on(capsys, monkeypatch):
    monkeypatch.setattr(console.signal, "signal", lambda *_: None)
    closed = []

    def run():
        try:
            yield Advance("train", 1, 10)
            raise KeyboardInterrupt
        finally:
            closed.append(True)

    with pytest.raises(SystemExit) as ended:
        console.follow(run(), interrupted="go on with\n  featurecache extract")
    assert ended.value.code == 130 and closed
    assert capsys.readouterr().err.endswith("\ninterrupted: go on with\n  featurecache extract\n")


def test_errors_name_the_program_that_every_shell_starts(capsys):
    with pytest.raises(SystemExit) as ended:
        console.fail(UsageError("there is no cache", hint="make one with `fc extract`"))
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: there is no cache\n  hint: make one with `featurecache extract`\n"
    with pytest.raises(SystemExit) as ended:
        console.fail(CorruptCacheError("bad"))
    assert ended.value.code == 5 and capsys.readouterr().err == "error: bad\n"


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1 kB"), (1_918_998, "1.92 MB"), (69_130_924_032, "69.1 GB")],
)
def test_sizes(count, text):
    assert console.size(count) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.99998, "0.999980"), (1.0, "1"), (0.98765, "0.9877"), (12345.6, "12,346"), (0.000123, "0.000123")],
)
def test_numbers(capsys, value, text):
    console.show({"value": value}, as_json=False)
    assert capsys.readouterr().out == f"value  {text}\n"
