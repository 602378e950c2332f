"""How outputs are kept on disk: one file for each encoding, all of them plain Zarr arrays."""

from collections.abc import Sequence

from featurecache.encodings.base import Encoding, holds_values
from featurecache.errors import UsageError
from featurecache.registry import Registry
from featurecache.types import OutputSpec

__all__ = ["ENCODINGS", "Encoding", "holds_values", "make_encoding"]

ENCODINGS: Registry[Encoding] = Registry(
    "encoding",
    float32="featurecache.encodings.dense:Dense",
    float16="featurecache.encodings.dense:Dense",
    int8="featurecache.encodings.int8:Int8",
    topk="featurecache.encodings.topk:TopK",
)


def make_encoding(
    spec: str,
    output: OutputSpec,
    *,
    temperatures: Sequence[float] = (1.0, 2.0, 4.0),
    scale: Sequence[float] = (),
) -> Encoding:
    """The encoding that "float16", "int8", "int8:row", "topk:64" or "topk:64@1,2,4" names, for one output.

    Temperatures in the text win over the argument; `scale` is that of int8:column.
    Raises UnknownNameError or UsageError.
    """
    name, _, options = spec.partition(":")
    encoding = ENCODINGS.get(name)
    if output.longest and name not in ("float16", "float32"):
        hint = f"write --encode {output.name}=float16 or {output.name}=float32"
        raise UsageError(f"{output.name} is kept for each token of a text, which {spec} cannot", hint=hint)
    if name == "int8":
        return encoding(output, options, scale)
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
