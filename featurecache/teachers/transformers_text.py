"""Any text encoder that transformers loads, pooled as its sentence-transformers files say."""

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor

from featurecache.errors import TeacherError
from featurecache.inputs import Inputs, TextInput
from featurecache.teachers.transformers_network import Network, open_folder
from featurecache.types import Json, OutputSpec

__all__ = ["TransformersText", "tokenizer_json"]

_POOLS = ("mean", "cls", "last", "pooler")
_SENTENCE_POOLS = {"mean_tokens": "mean", "mean": "mean", "cls_token": "cls", "cls": "cls", "lasttoken": "last"}
_LENGTH_LIMIT = 512
_LENGTH_UNKNOWN = 128


class TransformersText:
    """ "embedding" (hidden,): pooled, and of length 1 where the folder says so; "logits" (classes,) of classifiers."""

    def __init__(
        self,
        folder_or_name: str | Path,
        *,
        pool: str | None = None,
        max_length: int | None = None,
        weights: str | Path | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        """`folder_or_name` is a folder or ORG/NAME[@REVISION]; `pool` is "mean", "cls", "last" or "pooler".

        Raises TeacherError where it cannot be loaded, lacks weights, or its pooling or length is not supported.
        """
        folder = open_folder(folder_or_name, revision=revision, trust_remote_code=trust_remote_code)
        self.name = Path(str(folder_or_name).partition("@")[0]).name
        self._network = Network(
            folder, head="ForSequenceClassification", weights=weights, trust_remote_code=trust_remote_code
        )
        self.revision, self.license = self._network.revision, self._network.license
        self._pool, self._is_normalised = _pooling(folder, pool)
        if self._pool == "pooler" and not self._network.has_pooler:
            raise TeacherError(f"{self.name} has no pooler weights", hint="--pool mean or --pool cls")
        length = max_length or _max_length(folder, self._network.config)
        self.input = TextInput(tokenizer_json(folder), max_length=length)
        self.outputs = self._output_specs()

    def __call__(self, batch: Inputs, further: Sequence[str] = ()) -> dict[str, Tensor]:
        """{"ids", "mask": (batch, tokens)} -> embedding float32 (batch, hidden), logits (batch, classes), and what is
        asked for of layers, (batch, tokens, width)."""
        body, logits, layers = self._network(further, input_ids=batch["ids"], attention_mask=batch["mask"].long())
        with torch.inference_mode():
            embedding = _pooled(body, batch["mask"], self._pool).float()
            outputs = {"embedding": F.normalize(embedding, dim=-1) if self._is_normalised else embedding}
        return outputs | ({} if logits is None else {"logits": logits}) | layers

    @cached_property
    def further(self) -> tuple[OutputSpec, ...]:
        """ "hidden.L" (hidden,) and "qkv.L" (3 * hidden,) for each token."""
        ids = torch.zeros(1, self.input.max_length, dtype=torch.int64, device=self._network.model.device)
        longest = self.input.max_length
        return self._network.further(longest=longest, input_ids=ids, attention_mask=torch.ones_like(ids))

    def to(self, device: torch.device | str) -> "TransformersText":
        """Move the network; returns itself."""
        self._network.model.to(device)
        return self

    @property
    def parameters(self) -> int:
        """How many the network has."""
        return sum(parameter.numel() for parameter in self._network.model.parameters())

    def identity(self) -> Json:
        """Architecture, settings, pooling and weights: the same however they were loaded."""
        return self._network.identity({"embedding": {"pool": self._pool, "normalise": self._is_normalised}})

    def _output_specs(self) -> tuple[OutputSpec, ...]:
        # a full-length trial, because a text beyond the position table would fail in the middle of a run
        ids = torch.zeros(1, self.input.max_length, dtype=torch.int64)
        try:
            outputs = self({"ids": ids, "mask": torch.ones_like(ids, dtype=torch.bool)})
        except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
            hint = "--max-length makes texts shorter; --pool chooses another pooling"
            raise TeacherError(f"{self.name} cannot run on {ids.shape[1]} tokens: {error}", hint=hint) from error
        classes = {"logits": self._network.class_names}
        return tuple(OutputSpec(name, tuple(each.shape[1:]), classes.get(name, ())) for name, each in outputs.items())


def _pooled(body: Any, mask: Tensor, pool: str) -> Tensor:
    if pool == "pooler":
        return body.pooler_output
    hidden = body.last_hidden_state
    if pool == "cls":
        return hidden[:, 0]
    if pool == "last":
        return hidden[torch.arange(len(hidden), device=hidden.device), mask.sum(dim=1) - 1]
    weight = mask.unsqueeze(-1).float()
    return (hidden.float() * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1)


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _pooling(folder: Path, pool: str | None) -> tuple[str, bool]:
    # (pool, whether embeddings have length 1), as a sentence-transformers folder declares them
    if pool is not None and pool not in _POOLS:
        raise TeacherError(f"unknown pooling {pool!r}", hint=f"known: {', '.join(_POOLS)}")
    modules = [module["type"].rpartition(".")[2] for module in _read_json(folder / "modules.json") or []]
    is_normalised = "Normalize" in modules
    if pool is not None:
        return pool, is_normalised
    if other := set(modules) - {"Transformer", "Pooling", "Normalize"}:
        hint = "--pool gives the encoder's own embedding without them"
        raise TeacherError(f"sentence-transformers modules {sorted(other)} are not supported", hint=hint)
    settings = _read_json(folder / "1_Pooling" / "config.json")
    modes = [
        name.removeprefix("pooling_mode_") for name, value in settings.items() if value is True and "mode_" in name
    ]
    named = settings.get("pooling_mode", [])
    modes += [named] if isinstance(named, str) else named
    if len(modes) > 1 or (modes and modes[0] not in _SENTENCE_POOLS):
        raise TeacherError(f"pooling by {' and '.join(modes)} is not supported", hint=f"--pool {', '.join(_POOLS)}")
    return (_SENTENCE_POOLS[modes[0]] if modes else "mean"), is_normalised


def _max_length(folder: Path, config: Any) -> int:
    if stated := _read_json(folder / "sentence_bert_config.json").get("max_seq_length"):
        return stated
    limits = (
        _read_json(folder / "tokenizer_config.json").get("model_max_length"),
        getattr(config, "max_position_embeddings", None),
    )
    known = [int(limit) for limit in limits if limit]
    return min(*known, _LENGTH_LIMIT) if known else _LENGTH_UNKNOWN


def tokenizer_json(folder: Path) -> str:
    """The text of the tokenizer.json of a folder, or what its tokenizer is as one. Raises TeacherError."""
    if (folder / "tokenizer.json").is_file():
        text = (folder / "tokenizer.json").read_text(encoding="utf-8")
    else:
        try:
            text = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True).backend_tokenizer.to_str()
        except Exception as error:  # as many classes as there are tokenizers
            raise TeacherError(f"{folder} has no tokenizer.json, nor a tokenizer that can be made into one") from error
    if _read_json(folder / "sentence_bert_config.json").get("do_lower_case"):
        tokenizer = tokenizers.Tokenizer.from_str(text)
        steps = [tokenizers.normalizers.Lowercase(), *([tokenizer.normalizer] if tokenizer.normalizer else [])]
        tokenizer.normalizer = tokenizers.normalizers.Sequence(steps)
        return tokenizer.to_str()
    return text
