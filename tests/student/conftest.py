"""One thread and one seed for every student test."""

import pytest
import torch

from tests.student.two_ranks import all_pairs, pair

__all__ = ["all_pairs", "pair"]


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
