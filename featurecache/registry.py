"""Names as a visible table: each maps to `module:attribute`, imported only when it is asked for."""

import importlib
from collections.abc import Iterator
from typing import Any, Generic, TypeVar

from featurecache.errors import UnknownNameError

__all__ = ["Registry"]

Part = TypeVar("Part")


class Registry(Generic[Part]):
    """A read-only table of names; a wrong name is answered with the nearest right one."""

    def __init__(self, kind: str, **targets: str) -> None:
        self.kind = kind
        self._targets = {name.replace("_", "-"): target for name, target in targets.items()}

    def __iter__(self) -> Iterator[str]:
        return iter(self._targets)

    def __contains__(self, name: object) -> bool:
        return name in self._targets

    def get(self, name: str) -> Any:
        """The class or function behind a name. Raises UnknownNameError."""
        if name not in self._targets:
            raise UnknownNameError(self.kind, name, self._targets)
        module, _, attribute = self._targets[name].partition(":")
        return getattr(importlib.import_module(module), attribute)
