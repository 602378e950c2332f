"""`fc shell-init`: `fc` is a builtin of bash and zsh, and this makes both mean what they should."""

from collections.abc import Callable, Collection

from pipelines.cli import console

__all__ = ["shell_init"]

_FUNCTION = """\
# featurecache: send its subcommands to the program, and everything else to the shell's own fc.
fc() {{
  case "${{1-}}" in
    {names}) featurecache "$@" ;;
    *) builtin fc "$@" ;;
  esac
}}
"""


def shell_init(commands: Collection[str]) -> Callable[[], None]:
    """The command that prints the function for these subcommands and itself."""

    def command() -> None:
        """Print a shell function that makes `fc` mean this program.

        For bash and zsh, whose builtin fc still gets everything else, such as fc -l. Put the line below into ~/.bashrc
        or ~/.zshrc. In fish, fc is no builtin, and nothing is needed.

        Example: eval "$(featurecache shell-init)"
        """
        console.write(_FUNCTION.format(names="|".join([*sorted([*commands, "shell-init"]), "--help", "--version"])))

    return command
