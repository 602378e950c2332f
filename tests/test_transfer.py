"""Tensors on their way to a device: what arrives, and how far ahead."""

from unittest import mock

import numpy as np
import torch

from featurecache.transfer import Moving, Transfer, one_ahead


def test_on_a_cpu_what_arrives_is_what_was_sent():
    transfer = Transfer(torch.device("cpu"))
    tensors = {"a": torch.arange(3), "b": torch.ones(2, 2)}
    assert transfer.begin(tensors).arrived() == tensors  # the very same: nothing is copied
    assert transfer.send(np.array([2, 1])).tolist() == [2, 1]
    assert next(transfer.ahead(iter([5]))) == 5


def test_what_is_computed_waits_for_the_copy_and_keeps_its_memory(monkeypatch):
    computing, copied = mock.MagicMock(), mock.create_autospec(torch.cuda.Event, instance=True)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: computing)
    tensor = mock.create_autospec(torch.Tensor, instance=True)
    moving = Moving({"a": tensor}, copied)
    assert not computing.wait_event.called
    assert moving.arrived() == {"a": tensor}
    computing.wait_event.assert_called_once_with(copied)
    tensor.record_stream.assert_called_once_with(computing)


def test_one_ahead_begins_the_next_before_it_gives_one_out():
    begun = []

    def begin():
        for number in range(4):
            begun.append(number)
            yield number

    items = one_ahead(begin())
    for number in range(4):
        assert next(items) == number
        assert begun == list(range(min(number + 2, 4)))
    assert list(items) == [] and list(one_ahead(iter([]))) == []
