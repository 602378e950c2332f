"""`fc` in real shells: with the function of shell-init, and without it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.cli import app

BIN = Path(sys.executable).parent
INIT = 'eval "$(featurecache shell-init)"\n'
SHELLS = {
    # interactive, so that there is a history; without the user's own files
    "bash": ["bash", "--norc", "--noprofile", "-i"],
    "zsh": ["zsh", "-f", "-i"],
}


@pytest.fixture(params=SHELLS)
def type_into(request, tmp_path):
    """Types lines into an interactive shell; returns (stdout, stderr)."""
    command = SHELLS[request.param]
    if not shutil.which(command[0]):
        pytest.skip(f"{command[0]} is not installed")
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "HOME": str(tmp_path), "PS1": "", "TERM": "dumb", "FCEDIT": "cat"}

    def call(text):
        done = subprocess.run(
            command, input=text + "exit 0\n", env=environment, capture_output=True, text=True, check=True, cwd=tmp_path
        )
        return done.stdout, done.stderr

    return call


def test_subcommands_reach_the_program(type_into):
    out, err = type_into(f"{INIT}fc info nowhere\nfc extract --help\nfc --version\nfc --help\n")
    assert "there is no cache at nowhere" in err
    assert "Usage: featurecache extract" in out
    assert "featurecache 0." in out
    assert "shell-init" in out


def test_arguments_and_exit_codes_pass_unchanged(type_into):
    out, err = type_into(f"{INIT}fc info 'no  where'; echo code $?\n")
    assert "there is no cache at no  where" in err
    assert "code 2" in out


def test_the_rest_reaches_the_builtin(type_into):
    out, err = type_into(f"{INIT}history_of_a_shell=1\nfc -l\necho listed $?\n")
    assert "history_of_a_shell=1" in out and "listed 0" in out
    for again in ("fc -s", "fc"):  # what ran runs again; plain fc goes through the editor, which is cat here
        out, err = type_into(f"{INIT}echo ran-$((2+3))\n{again}\n")
        assert out.count("ran-5") == 2, (again, out, err)


def test_without_it_the_builtin_takes_the_name_and_env_does_not(type_into):
    out, _ = type_into(f"fc extract --help\nenv fc extract --help\n{BIN}/fc --version\n")
    assert out.count("Usage: featurecache extract") == 1
    assert "featurecache 0." in out


def test_function_names_every_command(run):
    text = run("shell-init").out
    named = [*app.registered_commands, *app.registered_groups]
    assert "import" in {each.name for each in named} and all(f"{each.name}|" in text for each in named)
