"""Two processes that stay together for all tests that need two: starting them takes longer than what they do."""

import contextlib
import multiprocessing
import os
import pickle
import socket
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch

from student.parallel import Ranks

_SECONDS = 300


class Pair:
    """Two ranks of a gloo group, each doing what it is told."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")  # a fork of a process that has run torch may hang
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        pipes = [context.Pipe() for _ in range(2)]
        self.ends = [here for here, _ in pipes]
        self.processes = [
            context.Process(target=_serve, args=(there, rank, port), daemon=True)
            for rank, (_, there) in enumerate(pipes)
        ]
        for process in self.processes:
            process.start()

    def run(self, function: Callable[..., Any], *given: Any) -> list[Any]:
        """What function(ranks, *given) returns on each rank. A rank that fails or hangs ends the pair."""
        for end in self.ends:
            end.send_bytes(pickle.dumps((function, given)))
        results = []
        for rank, end in enumerate(self.ends):
            kind, result = pickle.loads(end.recv_bytes()) if end.poll(_SECONDS) else ("error", "no answer")
            if kind == "error":
                self.end()
                pytest.fail(f"rank {rank}: {result}")
            results.append(result)
        return results

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()

    @property
    def is_alive(self) -> bool:
        return all(process.is_alive() for process in self.processes)


def _serve(end: Connection, rank: int, port: int) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    with contextlib.closing(Ranks.from_environment("cpu")) as ranks:
        while True:
            message = end.recv_bytes()
            try:
                function, given = pickle.loads(message)
                answer = pickle.dumps(("done", function(ranks, *given)))
            except BaseException:  # noqa: BLE001 - told to the test
                answer = pickle.dumps(("error", traceback.format_exc()))
            end.send_bytes(answer)


@pytest.fixture(scope="session")
def all_pairs() -> Iterator[list[Pair]]:
    """Those that were started; ended with the tests."""
    pairs: list[Pair] = []
    yield pairs
    for pair in pairs:
        pair.end()


@pytest.fixture
def pair(all_pairs: list[Pair]) -> Pair:
    """Two ranks, started anew only where a test has broken them."""
    if not all_pairs or not all_pairs[-1].is_alive:
        all_pairs.append(Pair())
    return all_pairs[-1]


def whole(path: Path) -> dict[str, bytes]:
    """Every file below a folder, by its relative path."""
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}
