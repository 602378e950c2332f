"""`fc shell-init`: `fc` is a builtin of bash and zsh, and this makes both mean what they should."""

import typer

from pipelines.cli import console

__all__ = ["shell_function", "shell_init"]

_FUNCTION = """\
# featurecache: send its subcommands to the program, and everything else to the shell's own fc.
fc() {{
  case "${{1-}}" in
    {names}) featurecache "$@" ;;
    *) builtin fc "$@" ;;
  esac
}}
"""


def shell_init() -> None:
    """Print a shell function so that `fc extract` runs this program in bash and zsh.

    Example: eval "$(featurecache shell-init)"   (put that line into ~/.bashrc or ~/.zshrc)
    """
    from pipelines.cli import app

    console.write(shell_function(app))


def shell_function(app: typer.Typer) -> str:
    """The function's text, for every subcommand there is."""
    names = sorted(str(command.name) for command in app.registered_commands)
    return _FUNCTION.format(names="|".join([*names, "--help"]))
