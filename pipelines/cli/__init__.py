"""The command line, under two names: `featurecache`, and `fc` where no shell takes it for its own builtin."""

import errno
from collections.abc import Callable
from typing import Annotated

import typer

from featurecache.errors import DiskFullError, FeatureCacheError, UsageError
from pipelines.cli import console
from pipelines.cli.command import Command
from pipelines.cli.demo import demo
from pipelines.cli.evaluate import evaluate
from pipelines.cli.export import export
from pipelines.cli.extend import extend
from pipelines.cli.extract import extract, fit_teacher, probe
from pipelines.cli.imports import probabilities
from pipelines.cli.inspect import info, list_names, status
from pipelines.cli.pretrain import pretrain
from pipelines.cli.recipes import run
from pipelines.cli.report import report
from pipelines.cli.shell import shell_init
from pipelines.cli.train import train_student
from pipelines.cli.verify import verify
from pipelines.cli.views import views

__all__ = ["app", "main"]

app = typer.Typer(
    name="featurecache",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_COMMANDS: dict[str, Callable[..., None]] = {
    "extract": extract,
    "extend": extend,
    "train-student": train_student,
    "evaluate": evaluate,
    "export": export,
    "probe": probe,
    "fit-teacher": fit_teacher,
    "pretrain": pretrain,
    "run": run,
    "report": report,
    "info": info,
    "status": status,
    "views": views,
    "verify": verify,
    "list": list_names,
    "demo": demo,
}
_IMPORTS: dict[str, Callable[..., None]] = {"probabilities": probabilities}
_COMMANDS["shell-init"] = shell_init([*_COMMANDS, "import"])

for _name, _command in _COMMANDS.items():
    app.command(_name, cls=Command)(_command)

_imports = typer.Typer(no_args_is_help=True, help="Make a cache of what a teacher said elsewhere.")
for _name, _command in _IMPORTS.items():
    _imports.command(_name, cls=Command)(_command)
app.add_typer(_imports, name="import")


def _show_version(asked: bool) -> bool:
    if asked:
        from featurecache import __version__

        console.write(f"featurecache {__version__}")
        raise typer.Exit
    return asked


@app.callback()
def _program(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Run a big teacher once, keep its outputs in a cache, train small students from it.

    `fc` is also a builtin of bash and zsh: type `featurecache`, or see `featurecache shell-init`.
    """


def main() -> None:
    """Run a command; an error that was meant for the user ends with its message and its exit code."""
    try:
        app(prog_name="featurecache")  # under either name, because a shell may take the other for its own
    except FeatureCacheError as error:
        console.fail(error)
    except OSError as error:
        told = _told(error)
        if told is None:
            raise
        console.fail(told)


def _told(error: OSError) -> FeatureCacheError | None:
    """What the system said about a file or the disk, as an error for the user; None for what only a traceback tells."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        hint = "free some space, then run the same command again: what was finished is kept"
        return DiskFullError(f"cannot write: {error.strerror}", hint=hint)
    if error.filename is None:
        return None
    return UsageError(
        f"cannot use {error.filename}: {error.strerror}", hint="choose another path, or set this one right"
    )
