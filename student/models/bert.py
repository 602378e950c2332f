"""BERT of any depth and width as a text backbone (Devlin et al., arXiv 1810.04805; Turc et al., arXiv 1908.08962)."""

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import BertConfig, BertModel, utils

from featurecache.errors import UsageError
from featurecache.inputs import TextInput
from featurecache.layers import Tap, Taps, attention_taps
from featurecache.types import Json, OutputSpec

__all__ = ["BertBackbone", "quiet"]

_MUST_AGREE = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "vocab_size",
    "max_position_embeddings",
)


class BertBackbone(nn.Module):
    """Token ids and mask (batch, tokens) -> the mean of the last layer over the real tokens, (batch, width).

    One attention head for each 64 dimensions and a feed-forward layer four times as wide, as Turc et al. size them.
    """

    def __init__(self, layers: int, width: int, input: TextInput, *, positions: int = 512) -> None:
        """`positions` is raised to the input's max_length where that is more."""
        super().__init__()
        heads = max(1, width // 64)
        if layers < 1 or width < 1 or width % heads:
            raise UsageError(f"no BERT has {layers} layers of width {width}", hint="use a width that 64 divides")
        self.name = f"bert:{layers}x{width}"
        self.features = width
        self.input = input
        configuration = BertConfig(
            vocab_size=input.vocabulary_size,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=4 * width,
            max_position_embeddings=max(positions, input.max_length),
            pad_token_id=input.padding_id,
            hidden_dropout_prob=0.1,  # BERT's own: labelled text is scarce where small students are wanted
            attention_probs_dropout_prob=0.0,  # with it, scaled_dot_product_attention has no fused kernel on a CPU
        )
        self.network = BertModel(configuration, add_pooling_layer=False)
        self.network.set_attn_implementation("sdpa")
        self._taps = Taps({})

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """{"ids": int64 (batch, tokens), "mask": bool (batch, tokens)} -> (batch, width)."""
        mask = inputs["mask"]
        hidden: Tensor = self.network(input_ids=inputs["ids"], attention_mask=mask).last_hidden_state
        weights = mask.unsqueeze(2).to(hidden.dtype)
        return (hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)

    def depths(self) -> dict[str, int]:
        """0 for the embeddings, then 1 for the first layer, and so on."""
        layer = re.compile(r"network\.encoder\.layer\.(\d+)\.")
        found = {name: layer.match(name) for name, _ in self.named_parameters()}
        return {name: int(match[1]) + 1 if match else 0 for name, match in found.items()}

    def layers(self) -> dict[str, OutputSpec]:
        """ "hidden.0", the embeddings, "hidden.L" (width,) and "qkv.L" (3 * width,) for each token."""
        width, longest = self.features, self.input.max_length
        return {
            name: OutputSpec(name, (3 * width if tap.heads else width,), longest=longest, heads=tap.heads)
            for name, tap in self._every_tap().items()
        }

    def keep(self, names: Sequence[str]) -> None:
        """From now on keep these of every call."""
        self._taps.close()
        every = self._every_tap()
        self._taps = Taps({name: every[name] for name in names})

    def kept(self) -> dict[str, Tensor]:
        """(batch, tokens, width) of the last call, by name, once."""
        return self._taps.take()

    def _every_tap(self) -> dict[str, Tap]:
        network, config = self.network, self.network.config
        states = [network.embeddings, *network.encoder.layer]
        projections = attention_taps(network, layers=config.num_hidden_layers, heads=config.num_attention_heads)
        return {f"hidden.{number}": Tap((module,)) for number, module in enumerate(states)} | projections

    def to_json(self) -> Json:
        """Layers, width, positions, and the vocabulary's size to check the tokenizer with."""
        configuration = self.network.config
        return {
            "kind": "bert",
            "layers": configuration.num_hidden_layers,
            "width": configuration.hidden_size,
            "positions": configuration.max_position_embeddings,
            "vocabulary": configuration.vocab_size,
        }

    def load_pretrained(self, source: str) -> None:
        """Start from a BERT of the same shape: a transformers folder or a name on the hub. Raises UsageError."""
        options: dict[str, Any] = {"add_pooling_layer": False, "use_safetensors": True, "output_loading_info": True}
        try:
            with quiet():
                loaded: Any = BertModel.from_pretrained(source, **options)
        except (OSError, RuntimeError, SafetensorError, ValueError) as error:
            raise UsageError(f"cannot load a BERT from {source!r}: {error}", hint=_remedy(source)) from error
        donor, report = loaded
        self._check_shape(donor.config, source)
        if report["missing_keys"]:
            raise UsageError(f"{source!r} lacks weights of a BERT, such as {min(report['missing_keys'])}")
        self.network.load_state_dict(donor.state_dict())

    def _check_shape(self, donor: BertConfig, source: str) -> None:
        own = self.network.config
        different = [name for name in _MUST_AGREE if getattr(own, name) != getattr(donor, name)]
        if different:
            listed = ", ".join(f"{name} {getattr(donor, name)} (here {getattr(own, name)})" for name in different)
            raise UsageError(
                f"the student {self.name} cannot start from {source!r}, which has {listed}",
                hint="choose a student of its shape, and the tokenizer that belongs to it",
            )


def _remedy(source: str) -> str:
    """What to do about weights that cannot be loaded. Pickled ones never are: reading them can run code."""
    if (Path(source) / "pytorch_model.bin").is_file():
        return "its weights are pickled; let transformers save them once more, as model.safetensors"
    return "without a network, give a local transformers folder with a model.safetensors"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' report of unused weights and its progress bar: what matters is raised here."""
    logging: Any = utils.logging
    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()
