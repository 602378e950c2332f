"""How a command's help looks: its example on a line of its own, its options in groups, names as people write them."""

from typing import Any

from typer.core import TyperCommand, TyperGroup, TyperOption

__all__ = ["Command", "every_command"]


def every_command(group: TyperGroup) -> dict[str, Any]:
    """The commands of a program by their names, "import probabilities" for one in a group."""
    found: dict[str, Any] = {}
    for name, command in group.commands.items():
        inner = every_command(command) if isinstance(command, TyperGroup) else {"": command}
        found |= {f"{name} {within}".rstrip(): each for within, each in inner.items()}
    return found


class Command(TyperCommand):
    """A command whose docstring may end with "Example: ..." and whose options may name the group they belong to."""

    def __init__(self, name: str | None, **settings: Any) -> None:
        super().__init__(name, **settings)
        # a paragraph that begins with \b is not wrapped
        self.help = (self.help or "").replace("Example: ", "\b\nExample:\n  ")
        for option in self.params:
            if isinstance(option, TyperOption) and not option.is_flag and option.metavar is None:
                option.metavar = option.name.upper()

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """RUN, not {RUN}."""
        return [piece.strip("{}") for piece in super().collect_usage_pieces(ctx)]

    def groups(self, ctx: Any) -> dict[str, list[tuple[str, str]]]:
        """(name, help) of the arguments, then of the options of each group; those without one are the everyday ones."""
        groups: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is None:
                continue
            if param.param_type_name == "argument":
                groups["Arguments"].append((record[0].removesuffix(" <str>"), record[1]))
            else:
                groups.setdefault(getattr(param, "rich_help_panel", None) or "Options", []).append(record)
        return {group: records for group, records in groups.items() if records}

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """One section for each group."""
        for group, records in self.groups(ctx).items():
            with formatter.section(group):
                formatter.write_dl(records)
