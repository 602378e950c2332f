"""Every command says what it is for, shows an example that works, and stands in docs/cli.md."""

import importlib.util
import shlex
from pathlib import Path

import pytest
import typer.main
from typer import Context

from pipelines.cli import app
from pipelines.cli.command import every_command

GROUP = typer.main.get_command(app)
EVERY = every_command(GROUP)
COMMANDS = sorted(EVERY)
REFERENCE = Path(__file__).parents[2] / "docs" / "cli.md"


def help_text(run, monkeypatch, *command, columns=80):
    monkeypatch.setenv("COLUMNS", str(columns))
    result = run(*command, "--help")
    assert result.code == 0 and not result.err
    return result.out


def test_program_help_fits_and_cuts_no_sentence(run, monkeypatch):
    text = help_text(run, monkeypatch)
    assert all(name in text for name in GROUP.commands)
    assert max(map(len, text.splitlines())) < 80
    for name in set(GROUP.commands) - {"demo"}:
        line = next(line for line in text.splitlines() if line.startswith(f"  {name} "))
        assert not line.endswith("..."), line


@pytest.mark.parametrize("name", COMMANDS)
def test_command_has_help_with_an_example_on_its_own_line(run, monkeypatch, name):
    text = help_text(run, monkeypatch, *name.split())
    lines = text.splitlines()
    example = lines[lines.index("  Example:") + 1]
    assert example.startswith("    ") and "featurecache" in example
    assert lines[lines.index("  Example:") + 2] == ""
    assert max(map(len, lines)) < 80
    assert "<str>" not in text and "<list" not in text and "{" not in text.splitlines()[0]


@pytest.mark.parametrize("name", COMMANDS)
def test_example_is_accepted(name):
    command = EVERY[name]
    example = command.help.rpartition("Example:\n")[2].strip().removeprefix('eval "$(').removesuffix(')"')
    words = shlex.split(example)
    given = 1 + len(name.split())
    assert words[:given] == ["featurecache", *name.split()]
    command.make_context(name, words[given:])  # refuses unknown options, missing ones and wrong values


@pytest.mark.parametrize("name", COMMANDS)
def test_every_parameter_has_help(name):
    command = EVERY[name]
    context = Context(command, info_name=name)
    for records in command.groups(context).values():
        for parameter, text in records:
            assert text.strip(), f"{name} {parameter}"


def test_reference_is_up_to_date(monkeypatch):
    monkeypatch.setenv("COLUMNS", "50")  # the terminal does not matter
    spec = importlib.util.spec_from_file_location("write_cli_reference", REFERENCE.parent / "write_cli_reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert REFERENCE.read_text(encoding="utf-8") == module.reference(), "run `make docs`"


def test_reference_has_every_command():
    text = REFERENCE.read_text(encoding="utf-8")
    assert [line[3:] for line in text.splitlines() if line.startswith("## ")] == list(EVERY)
