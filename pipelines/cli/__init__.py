"""The command line, under two names: `featurecache`, and `fc` where no shell takes it for its own builtin."""

import typer

from featurecache.errors import FeatureCacheError
from pipelines.cli import console
from pipelines.cli.demo import demo
from pipelines.cli.extract import extract, fit_teacher, probe
from pipelines.cli.inspect import info, list_names, status
from pipelines.cli.shell import shell_init
from pipelines.cli.train import evaluate, train_student

__all__ = ["app", "main"]

app = typer.Typer(
    name="featurecache",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
    help="Run a big teacher once, keep its outputs in a cache, train small students from it.\n\n"
    "`fc` is also a builtin of bash and zsh: type `featurecache`, or see `featurecache shell-init`.",
)

_COMMANDS = {
    "extract": extract,
    "train-student": train_student,
    "evaluate": evaluate,
    "probe": probe,
    "fit-teacher": fit_teacher,
    "info": info,
    "status": status,
    "list": list_names,
    "demo": demo,
    "shell-init": shell_init,
}

for _name, _command in _COMMANDS.items():
    app.command(_name)(_command)


def main() -> None:
    """Run a command; an error that was meant for the user ends with its message and its exit code."""
    try:
        app()
    except FeatureCacheError as error:
        console.fail(error)
