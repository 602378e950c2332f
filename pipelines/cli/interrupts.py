"""^C and SIGTERM while a pipeline runs: the first lets it come to a safe place if one is near, the second ends it."""

import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from pipelines.events import Advance, Event

__all__ = ["PATIENCE_SECONDS", "Interrupts"]

PATIENCE_SECONDS = 8.0
"""Longest wait for a safe place: container runtimes follow SIGTERM with SIGKILL after 10 seconds."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """While it is entered, a first signal ends in KeyboardInterrupt: at a safe place if one comes soon, else at once.

    A signal that is ignored, as ^C is in the background jobs of a script, stays ignored.
    """

    def __init__(self, note: Callable[[str], None]) -> None:
        """`note` is called with a line for the user."""
        self.number = 0
        """The signal that came; 0 for none."""
        self._note = note
        self._left = 0
        self._seen: tuple[float, int] | None = None
        self._pace = 0.0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Interrupts":  # noqa: PYI034 - beartype cannot check Self
        if threading.current_thread() is threading.main_thread():
            heeded = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._handle) for number in heeded}
            self._before[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._stop)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def stop_here(self, event: Event) -> None:
        """Raises KeyboardInterrupt if a signal came and nothing is lost by stopping now."""
        if not isinstance(event, Advance):
            return
        now = time.monotonic()
        if self._seen and event.done > self._seen[1]:
            self._pace = (now - self._seen[0]) / (event.done - self._seen[1])
        self._seen = now, event.done
        self._left = event.until_safe
        if self.number and not self._left:
            self._stop()

    def _handle(self, number: int, _: FrameType | None) -> None:
        self.number = number
        for each in self._before.keys() & set(_SIGNALS):
            signal.signal(each, signal.SIG_DFL)  # the second one ends the process, whatever it is doing
        if not self._left or self._left * self._pace > PATIENCE_SECONDS:
            self._stop()
        self._note("\nstopping as soon as nothing is lost by it; once more stops at once")
        signal.setitimer(signal.ITIMER_REAL, PATIENCE_SECONDS)  # in case a single batch takes longer

    def _stop(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        raise KeyboardInterrupt
