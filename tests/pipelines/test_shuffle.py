"""How rows are shuffled, from the recipe to the run: as memory allows, told, recorded, and kept when a run goes on."""

import json

import pytest
from safetensors.torch import load_file

from featurecache.errors import IdentityError
from pipelines import finish, train_student
from pipelines.events import Advance, Message

FAST = {"student": "bert:1x64", "max_length": 24, "batch_size": 16, "workers": 0, "device": "cpu", "validation": 0.2}
TOLD = Message("rows are shuffled in groups of blocks, and read one group ahead: not all need fit in memory")


def available(monkeypatch, found):
    monkeypatch.setattr("student.data.available_memory", lambda: found)


def recorded(run):
    return json.loads((run / "recipe.json").read_text())["shuffle"]


@pytest.mark.parametrize(
    ("given", "memory", "found"),
    [
        ("auto", 10**9, "global"),
        ("auto", 1000, "blocks"),
        ("global", 1000, "global"),
        ("blocks", 10**9, "blocks"),
    ],
)
def test_what_was_chosen_is_told_and_recorded(text_cache, tmp_path, monkeypatch, given, memory, found):
    available(monkeypatch, memory)
    events = list(train_student(cache=text_cache, out=tmp_path / "run", steps=1, shuffle=given, **FAST))
    assert (TOLD in events) == (found == "blocks")
    assert recorded(tmp_path / "run") == found


def test_a_run_goes_on_with_its_own_order_when_memory_is_freed(text_cache, tmp_path, monkeypatch):
    given = {**FAST, "cache": text_cache, "steps": 120, "objective": "kl"}
    available(monkeypatch, 1000)
    finish(train_student(out=tmp_path / "whole", **given))
    for event in (training := train_student(out=tmp_path / "parts", **given)):
        if isinstance(event, Advance) and event.done == 110:
            training.close()
    available(monkeypatch, 10**9)
    finish(train_student(out=tmp_path / "parts", resume=True, **given))
    whole, parts = (load_file(tmp_path / run / "student/student.safetensors") for run in ("whole", "parts"))
    assert all(whole[name].equal(parts[name]) for name in whole)
    assert recorded(tmp_path / "parts") == "blocks"
    with pytest.raises(IdentityError, match="shuffle: it has 'blocks', this run has 'global'"):
        finish(train_student(out=tmp_path / "parts", resume=True, shuffle="global", **given))
