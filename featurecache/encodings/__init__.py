"""How outputs are kept on disk: one file for each encoding, all of them plain Zarr arrays."""

from collections.abc import Sequence

from featurecache.encodings.base import Encoding
from featurecache.errors import UsageError
from featurecache.registry import Registry
from featurecache.types import OutputSpec

__all__ = ["ENCODINGS", "Encoding", "make_encoding"]

ENCODINGS: Registry[Encoding] = Registry(
    "encoding",
    float32="featurecache.encodings.dense:Dense",
    float16="featurecache.encodings.dense:Dense",
    topk="featurecache.encodings.topk:TopK",
)


def make_encoding(spec: str, output: OutputSpec, *, temperatures: Sequence[float] = (1.0, 2.0, 4.0)) -> Encoding:
    """The encoding that "float16", "topk:64" or "topk:64@1,2,4" names, for one output.

    Temperatures in the text win over the argument. Raises UnknownNameError or UsageError.
    """
    name, _, options = spec.partition(":")
    encoding = ENCODINGS.get(name)
    if name != "topk":
        if options:
            raise UsageError(f"{name} takes no option, got {spec!r}")
        return encoding(output, name)
    k, _, own = options.partition("@")
    try:
        chosen = tuple(map(float, own.split(","))) if own else tuple(temperatures)
        return encoding(output, int(k), chosen)
    except ValueError:
        raise UsageError(f"cannot read the encoding {spec!r}", hint="write topk:64, or topk:64@1,2,4") from None
