"""When a signal ends a run, and when it is let go on: the class alone, with signals to this very process."""

import os
import signal
import time

import pytest

from pipelines.cli import interrupts as module
from pipelines.cli.interrupts import Interrupts
from pipelines.events import Advance, Message


@pytest.fixture
def clock(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def send(number=signal.SIGINT):
    os.kill(os.getpid(), number)


def at(done, until_safe):
    return Advance("extract", done, 1000, until_safe=until_safe)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_where_nothing_is_lost_it_ends_at_once(number):
    with Interrupts(pytest.fail) as interrupts:
        interrupts.stop_here(Message("loading"))
        interrupts.stop_here(at(100, 0))
        with pytest.raises(KeyboardInterrupt):
            send(number)
        assert interrupts.number == number


def test_it_waits_for_the_end_of_the_shard(clock):
    said = []
    with Interrupts(said.append) as interrupts:
        interrupts.stop_here(at(100, 300))
        clock[0] += 1
        interrupts.stop_here(at(200, 200))  # two more seconds at this pace
        send()
        assert said == ["\nstopping as soon as nothing is lost by it; once more stops at once"]
        interrupts.stop_here(at(300, 100))
        interrupts.stop_here(Message("a word"))
        with pytest.raises(KeyboardInterrupt):
            interrupts.stop_here(at(400, 0))
        assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_an_end_that_is_too_far_is_not_waited_for(clock):
    with Interrupts(pytest.fail) as interrupts:
        interrupts.stop_here(at(100, 900))
        clock[0] += 1
        interrupts.stop_here(at(200, 801))  # 8.01 seconds at this pace
        with pytest.raises(KeyboardInterrupt):
            send()


def test_a_batch_that_never_ends_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.2)
    said = []
    with Interrupts(said.append) as interrupts:
        interrupts.stop_here(at(100, 1))
        send()
        with pytest.raises(KeyboardInterrupt):
            time.sleep(30)
        assert len(said) == 1


def test_the_second_is_the_system_s_own(clock):
    with Interrupts(lambda text: None) as interrupts:
        interrupts.stop_here(at(100, 1))
        send(signal.SIGTERM)
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == [signal.SIG_DFL] * 2
        signal.setitimer(signal.ITIMER_REAL, 0)


def test_handlers_are_those_of_before_and_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in the background jobs of a script
    terminate = signal.getsignal(signal.SIGTERM)
    try:
        with Interrupts(pytest.fail) as interrupts:
            send()
            assert interrupts.number == 0 and signal.getsignal(signal.SIGTERM) is not terminate
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN and signal.getsignal(signal.SIGTERM) is terminate
    finally:
        signal.signal(signal.SIGINT, before)
