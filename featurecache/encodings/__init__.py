"""How outputs are kept on disk: one file for each encoding, all of them plain Zarr arrays."""

import re
from collections.abc import Sequence

from featurecache.encodings.base import Encoding, holds_values
from featurecache.errors import UsageError
from featurecache.registry import Registry
from featurecache.types import OutputSpec

__all__ = ["ENCODINGS", "Encoding", "holds_values", "is_sparse", "make_encoding"]

ENCODINGS: Registry[Encoding] = Registry(
    "encoding",
    float32="featurecache.encodings.dense:Dense",
    float16="featurecache.encodings.dense:Dense",
    int8="featurecache.encodings.int8:Int8",
    topk="featurecache.encodings.topk:TopK",
    sampled="featurecache.encodings.sampled:Sampled",
)
_SAMPLED = re.compile(r"(?:topk:(?P<k>\d+)\+)?sampled:(?P<draws>\d+)(?:@(?P<temperature>.+))?")


def is_sparse(spec: str) -> bool:
    """Whether an encoding keeps some classes of logits, not every number of an output."""
    return spec.partition(":")[0] in ("topk", "sampled")


def make_encoding(
    spec: str,
    output: OutputSpec,
    *,
    temperatures: Sequence[float] = (1.0, 2.0, 4.0),
    scale: Sequence[float] = (),
) -> Encoding:
    """The encoding that "float16", "int8:row", "topk:64", "topk:64@1,2,4", "sampled:50@1" or "topk:8+sampled:50@1"
    names, for one output.

    Temperatures in the text win over the argument; what is sampled has one, and 1 where the argument has several;
    `scale` is that of int8:column. Raises UnknownNameError or UsageError.
    """
    name, _, options = spec.partition(":")
    encoding = ENCODINGS.get(name)
    if output.longest and name not in ("float16", "float32"):
        hint = f"write --encode {output.name}=float16 or {output.name}=float32"
        raise UsageError(f"{output.name} is kept for each token of a text, which {spec} cannot", hint=hint)
    if name == "sampled" or "+" in spec:
        return _sampled(spec, output, temperatures)
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


def _sampled(spec: str, output: OutputSpec, temperatures: Sequence[float]) -> Encoding:
    match = _SAMPLED.fullmatch(spec)
    hint = "write sampled:50@1, with one temperature, or topk:8+sampled:50@1"
    if match is None:
        raise UsageError(f"cannot read the encoding {spec!r}", hint=hint)
    try:
        temperature = float(match["temperature"] or (temperatures[0] if len(temperatures) == 1 else 1.0))
        encoding: Encoding = ENCODINGS.get("sampled")(output, int(match["draws"]), temperature, int(match["k"] or 0))
    except ValueError:
        raise UsageError(f"cannot read the encoding {spec!r}", hint=hint) from None
    return encoding
