"""What stands in a sealed cache, and the teachers that made it: what `fc extend` begins with."""

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from featurecache.errors import UsageError
from featurecache.fingerprint import canonical_json
from featurecache.types import Json, Modality

if TYPE_CHECKING:
    from featurecache.store.layout import PartSpec
    from featurecache.store.reader import Cache
    from featurecache.teachers import Teacher

__all__ = ["Standing", "Teachers", "gave", "order_of", "views_of"]


class Standing:
    """What the seal covers of a split."""

    def __init__(self, cache: "Cache", split: str) -> None:
        parts = cache.parts(split) if split in cache.splits else []
        self.names = {part.name for part in parts} | set(cache.objects.list(split))
        teachers = [part for part in parts if part.kind == "teacher"]
        self.bases = sorted((part for part in teachers if views_of(part)[0] == 0), key=order_of)
        """Parts that begin with view 0, the oldest first."""
        self.drawn = [part for part in parts if part.kind == "views"]
        self.views = max((views_of(part)[1] for part in teachers), default=1)
        self._teachers = teachers

    def stop(self, base: "PartSpec") -> int:
        """One past the last view of a part and of those that go on with it."""
        same = (part for part in self._teachers if _kept(part) == _kept(base))
        return max(views_of(part)[1] for part in same)

    def free(self, name: str, taken: Collection[str] = ()) -> str:
        """The name for a part, with a number behind it where that is taken."""
        names = (name, *(f"{name[:58]}-{number}" for number in range(2, 10_000)))
        return next(free for free in names if free not in self.names and free not in taken)


class Teachers:
    """The teachers whose outputs are to be added, each loaded when it is first needed."""

    def __init__(self, cache: "Cache", name: str | None, options: Mapping[str, Any]) -> None:
        self._name, self._options = name, dict(options)
        self.loaded: list[Teacher] = []
        bases = [base for split in cache.splits for base in Standing(cache, split).bases]
        if name is not None:
            self._load_named(name, bases)
        elif given := [option for option, value in self._options.items() if value]:
            flags = ", ".join(f"--{option.replace('_', '-')}" for option in given)
            raise UsageError(f"{flags} without --teacher", hint="name the teacher that it is for")

    def of(self, standing: "Standing") -> "list[Teacher]":
        """Those whose outputs stand in a split, or the one that was named."""
        from pipelines.recompute import load_again

        if self._name is not None:
            return self.loaded
        found = []
        for base in standing.bases:
            network = next((network for network in self.loaded if gave(network, base)), None)
            if network is None:
                network = load_again(base, None, None, None)
                self.loaded.append(network)
            found += [] if network in found else [network]
        return found

    def _load_named(self, name: str, bases: "Sequence[PartSpec]") -> None:
        from featurecache.teachers import load_teacher

        modality: Modality = "text" if bases and bases[0].facts["input"].get("kind") == "text" else "image"
        network = load_teacher(name, modality=modality, **self._options)
        self.loaded.append(network)


def gave(network: "Teacher", part: "PartSpec") -> bool:
    """Whether a part is what this teacher gave."""
    there = part.identity["teacher"], part.identity["input"]
    return canonical_json(there) == canonical_json((network.identity(), network.input.to_json()))


def views_of(part: "PartSpec") -> tuple[int, int]:
    """First view of a part, and one past the last."""
    return part.views or (0, 1)


def order_of(part: "PartSpec") -> tuple[int, str]:
    """By which a split's teachers are sorted, the first one first."""
    return int(part.facts.get("order", 0)), part.name


def _kept(part: "PartSpec") -> Json:
    return part.facts["teacher_id"], [item.to_json() for item in part.outputs]
