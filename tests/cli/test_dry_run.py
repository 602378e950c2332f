"""`extract --dry-run`: what it would take, as text or JSON, and exit code 6 where the disk is too small."""

import json
import shutil

import pytest

from pipelines import dry_run

COMMAND = ("extract", "--teacher", "random", "--data", "synthetic-text:40", "--workers", "0", "--device", "cpu")


@pytest.fixture(autouse=True)
def _briefly(monkeypatch):
    monkeypatch.setattr(dry_run, "_SECONDS", 0.05)
    monkeypatch.setattr(dry_run, "_WRITING_SECONDS", 0.01)


def test_text_and_json_have_the_same_facts(run, tmp_path):
    shown = run(*COMMAND, "--out", tmp_path / "cache", "--dry-run")
    facts = json.loads(run(*COMMAND, "--out", tmp_path / "cache", "--dry-run", "--json").out)
    assert shown.code == 0 and list(tmp_path.iterdir()) == []
    lines = [line.split() for line in shown.out.splitlines()]
    assert ["bytes", f"{facts['bytes']:,}", f"({facts['bytes'] / 1e6:.3g}", "MB)"] in lines and [
        "files",
        f"{facts['files']:,}",
    ] in lines
    assert ["embedding", f"{facts['bytes_by_array']['train/random-text']['embedding']:,}"] in lines
    assert facts["splits"]["test"]["missing"] == 10
    assert {"free", "hours", "limit", "advice", "rows_per_second"} <= set(facts)


@pytest.mark.parametrize("flags", [["--dry-run"], ["--dry-run", "--json"], []])
def test_a_disk_that_is_too_small(run, tmp_path, monkeypatch, flags):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(5000, 4990, 10))
    ended = run(*COMMAND, "--out", tmp_path / "cache", *flags)
    assert (ended.code, ended.out) == (6, "")
    assert "bytes more, and 10 are free there" in ended.err and "hint: " in ended.err
    assert list(tmp_path.iterdir()) == []
