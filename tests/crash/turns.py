"""Threads that take turns at operations on the disk, so that every order in which they could race can be tried."""

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tests.crash.operations import Operation, around

SECONDS = 60
"""A turn that takes longer is a deadlock of the test's own."""

Choice = tuple[int, list[int]]
"""Which thread went on, and which could have."""


def run_in_turns(
    root: Path, works: Sequence[Callable[[], object]], choose: Callable[[list[int]], int], *, kinds: set[str]
) -> list[Choice]:
    """Run each work in a thread; before every operation of these kinds, `choose` says which thread goes on.

    Returns the choices. Raises what a thread raised.
    """
    turns = _Turns(len(works), kinds)
    threads = [threading.Thread(target=turns.work, args=item, daemon=True) for item in enumerate(works)]
    with around(root, turns.before):
        for thread in threads:
            thread.start()
        choices = list(turns.grant(choose))
        for thread in threads:
            thread.join()
    if turns.errors:
        raise turns.errors[0]
    return choices


def all_orders(run: Callable[[Callable[[list[int]], int]], list[Choice]]) -> int:
    """Call `run` with one `choose` after another until every order has been tried; returns how many there are."""
    beginnings: list[list[int]] = [[]]
    count = 0
    while beginnings:
        first = beginnings.pop()
        rest = iter(first)
        choices = run(lambda waiting, rest=rest: next(rest, waiting[0]))
        count += 1
        for at in range(len(first), len(choices)):
            chosen, waiting = choices[at]
            before = [choice for choice, _ in choices[:at]]
            beginnings += [[*before, other] for other in waiting if other != chosen]
    return count


class _Turns:
    def __init__(self, count: int, kinds: set[str]) -> None:
        self.errors: list[BaseException] = []
        self._kinds = kinds
        self._changed = threading.Condition()
        self._running, self._waiting = set(range(count)), set[int]()
        self._mine = threading.local()

    def work(self, number: int, work: Callable[[], object]) -> None:
        self._mine.number = number
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - raised again by the test's own thread
            self.errors.append(error)
        with self._changed:
            self._running.discard(number)
            self._changed.notify_all()

    def before(self, operation: Operation, do: Callable[[], object]) -> object:
        if operation.kind in self._kinds:
            self._wait()
        return do()

    def _wait(self) -> None:
        number = self._mine.number
        with self._changed:
            self._running.discard(number)
            self._waiting.add(number)
            self._changed.notify_all()
            assert self._changed.wait_for(lambda: number in self._running, SECONDS)

    def grant(self, choose: Callable[[list[int]], int]) -> Iterator[Choice]:
        """Let one thread at a time go on to its next operation, until all have ended."""
        while True:
            with self._changed:
                assert self._changed.wait_for(lambda: not self._running, SECONDS)
                if not self._waiting:
                    return
                waiting = sorted(self._waiting)
                chosen = choose(waiting)
                self._waiting.discard(chosen)
                self._running.add(chosen)
                self._changed.notify_all()
            yield chosen, waiting
