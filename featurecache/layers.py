"""What the layers of a network give for each token: which modules that is, and hooks that keep it for one pass.

"hidden.L" is the hidden states after layer L, 0 before the first; "qkv.L" the queries, keys and values of layer L, from
1 on, side by side. They are found by how timm and transformers name their modules.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from featurecache.types import OutputSpec

__all__ = ["Tap", "Taps", "as_tokens", "attention_taps", "deepest_layer", "is_layer", "layer_specs", "timm_taps"]

_LAYER = re.compile(r"(hidden|qkv)\.(0|[1-9][0-9]{0,5})")
_PROJECTIONS = (("query", "key", "value"), ("q_lin", "k_lin", "v_lin"), ("q_proj", "k_proj", "v_proj"))
_ELSEWHERE = ("rotary", "relative", "rel_pos")
"""What modules are called that bring positions into the attention."""


@dataclass(frozen=True, slots=True)
class Tap:
    """Where an output of a layer is to be had."""

    modules: tuple[nn.Module, ...]
    """What these give, side by side."""
    heads: int = 0
    """Attention heads, of queries, keys and values."""
    takes_input: bool = False
    """What goes into the module instead."""
    channels_last: bool = False
    """Whether maps are (batch, height, width, channels)."""


class Taps:
    """Keeps what taps give from one pass through the network to `take`."""

    def __init__(self, taps: Mapping[str, Tap]) -> None:
        """Hooks the modules of these taps."""
        self._taps = dict(taps)
        self._kept: dict[tuple[str, int], Tensor] = {}
        self._handles = [
            module.register_forward_pre_hook(partial(self._keep_input, (name, place)))
            if tap.takes_input
            else module.register_forward_hook(partial(self._keep, (name, place)))
            for name, tap in self._taps.items()
            for place, module in enumerate(tap.modules)
        ]

    def take(self) -> dict[str, Tensor]:
        """(batch, tokens, width) of the last pass, by name; taps whose modules did not run are not there."""
        kept, self._kept = self._kept, {}
        found = {}
        for name, tap in self._taps.items():
            pieces = [kept[name, place] for place in range(len(tap.modules)) if (name, place) in kept]
            if len(pieces) == len(tap.modules):
                joined = torch.cat(pieces, dim=-1) if len(pieces) > 1 else pieces[0]
                found[name] = as_tokens(joined, channels_last=tap.channels_last)
        return found

    def close(self) -> None:
        """Leave the modules as they were."""
        for handle in self._handles:
            handle.remove()

    def _keep(self, key: tuple[str, int], _module: nn.Module, _args: Any, output: Any) -> None:
        self._kept[key] = output[0] if isinstance(output, tuple) else output

    def _keep_input(self, key: tuple[str, int], _module: nn.Module, args: Any) -> None:
        self._kept[key] = args[0]


def as_tokens(values: Tensor, *, channels_last: bool = False) -> Tensor:
    """(batch, tokens, width) as it is; a map (batch, width, height, width) with its places as tokens, row by row."""
    if values.ndim != 4:
        return values
    return values.flatten(1, 2) if channels_last else values.flatten(2).transpose(1, 2)


def is_layer(name: str) -> bool:
    """Whether an output is one of a layer, for each token."""
    return _LAYER.fullmatch(name) is not None


def deepest_layer(kind: str, names: Collection[str]) -> str | None:
    """The name with the largest number of "hidden" or "qkv", or None."""
    matches = (_LAYER.fullmatch(name) for name in names)
    numbers = [int(match[2]) for match in matches if match and match[1] == kind]
    return f"{kind}.{max(numbers)}" if numbers else None


def layer_specs(taps: Mapping[str, Tap], found: Mapping[str, Tensor], *, longest: int = 0) -> tuple[OutputSpec, ...]:
    """What a trial with one sample says of each output: (tokens, width), or with `longest` (width,) for each token.

    What has another shape is no output for each token, and left out.
    """
    specs = []
    for name, values in found.items():
        heads = taps[name].heads if name in taps else 0
        if values.ndim != 3 or len(values) != 1 or (heads and values.shape[2] % (3 * heads)):
            continue
        shape = (values.shape[2],) if longest else (values.shape[1], values.shape[2])
        specs.append(OutputSpec(name, shape, longest=longest, heads=heads))
    return tuple(specs)


def attention_taps(network: nn.Module, *, layers: int, heads: int) -> dict[str, Tap]:
    """ "qkv.1" and on of a transformers model; none where there are not so many, or where positions come into the
    attention elsewhere, so that nobody could compute it from them."""
    if any(word in name.lower() for name, _ in network.named_modules() for word in _ELSEWHERE):
        return {}
    groups = []
    for module in network.modules():
        for names in _PROJECTIONS:
            found = [getattr(module, name, None) for name in names]
            linear = [child for child in found if isinstance(child, nn.Linear)]
            if len(linear) == 3 and len({child.out_features for child in linear}) == 1:
                groups.append(tuple(linear))
    if len(groups) != layers or heads < 1:
        return {}
    return {f"qkv.{number}": Tap(group, heads=heads) for number, group in enumerate(groups, 1)}


def timm_taps(network: Any) -> dict[str, Tap]:
    """Of a ViT of timm "hidden.0", before its first block, "hidden.L" and "qkv.L"; of others "hidden.K", the map of
    stage K as timm counts them for `out_indices`."""
    blocks = getattr(network, "blocks", None)
    if isinstance(blocks, nn.Sequential | nn.ModuleList) and len(blocks) and hasattr(blocks[0], "attn"):
        return _vit_taps(network, blocks)
    info = getattr(network, "feature_info", None) or ()
    stages = info if isinstance(info, Sequence) else info.get_dicts()
    modules = dict(network.named_modules())
    names = [str(stage.get("module")) for stage in stages]
    if not all(name in modules for name in names):
        return {}
    is_last = getattr(network, "output_fmt", "NCHW") == "NHWC"
    return {f"hidden.{number}": Tap((modules[name],), channels_last=is_last) for number, name in enumerate(names)}


def _vit_taps(network: Any, blocks: Sequence[nn.Module] | nn.Module) -> dict[str, Tap]:
    each: list[Any] = list(blocks)  # type: ignore[arg-type]
    taps = {"hidden.0": Tap((each[0],), takes_input=True)}
    taps |= {f"hidden.{number}": Tap((block,)) for number, block in enumerate(each, 1)}
    if getattr(network, "rope", None) is not None:
        return taps
    for number, block in enumerate(each, 1):
        if _is_plain(block.attn):
            taps[f"qkv.{number}"] = Tap((block.attn.qkv,), heads=block.attn.num_heads)
    return taps


def _is_plain(attention: Any) -> bool:
    """Whether its attention is the softmax of q k / sqrt(d): heads are not mixed, nothing is normed or added."""
    qkv = getattr(attention, "qkv", None)
    norms = [getattr(attention, name, None) for name in ("q_norm", "k_norm")]
    return (
        type(attention).__name__ == "Attention"
        and isinstance(qkv, nn.Linear)
        and all(norm is None or isinstance(norm, nn.Identity) for norm in norms)
        and getattr(attention, "relative_position_bias_table", None) is None
    )
