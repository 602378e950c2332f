"""Rewrites docs/cli.md from the commands' own help: `python docs/write_cli_reference.py`, or `make docs`."""

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main
from typer import Context

from pipelines.cli import app
from pipelines.cli.command import every_command

REFERENCE = Path(__file__).parent / "cli.md"

_TOP = """\
# The command line

Written by `docs/write_cli_reference.py` from the commands' own help; `make docs` writes it again.

`fc` is also a builtin of bash and zsh. Type `featurecache`, or put `eval "$(featurecache shell-init)"` into `~/.bashrc`
or `~/.zshrc`: then `fc extract` runs this program, and `fc -l` is still the shell's. In fish, `fc` just works.

Results go to stdout, everything else to stderr; `--json` prints a result as one JSON object.

| exit code | what it means |
|--:|---|
| 0 | done |
| 1 | something unexpected; the traceback says what |
| 2 | the request is wrong: a name, an option, a path |
| 3 | rows are missing; the same command again adds them |
| 4 | what is there was made from another teacher, data set or encoding |
| 5 | what is on disk is not what was committed |
| 6 | the disk is full, or a quota is used up |
| 130, 143 | ended by ^C, by SIGTERM; the last lines say how to go on |
"""


def reference() -> str:
    """The whole page."""
    group: Any = typer.main.get_command(app)
    top = Context(group, info_name="featurecache", **group.context_settings)
    return "\n".join([_TOP, *(_section(name, command, top) for name, command in every_command(group).items())])


def _section(name: str, command: Any, top: Context) -> str:
    context = Context(command, info_name=name, parent=top)
    return "\n".join([f"## {name}\n", *_text(command.help), *_tables(command, context)])


def _text(help_text: str) -> Iterator[str]:
    """The paragraphs, and the example as code."""
    for paragraph in inspect.cleandoc(help_text).split("\n\n"):
        if paragraph.startswith("\b"):
            lines = [line.strip() for line in paragraph.splitlines()[2:]]
            yield "\n".join(["```", *lines, "```\n"])
        else:
            yield " ".join(paragraph.split()) + "\n"


def _tables(command: Any, context: Context) -> Iterator[str]:
    for group, records in command.groups(context).items():
        rows = [f"| `{name}` | {_cell(text)} |" for name, text in records]
        yield "\n".join([f"| {group} | |", "|---|---|", *rows, ""])


def _cell(text: str) -> str:
    return text.replace("  [", " [").replace("|", "\\|")


if __name__ == "__main__":
    REFERENCE.write_text(reference(), encoding="utf-8")
