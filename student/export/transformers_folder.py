"""A folder that plain transformers loads, and sentence-transformers reads as an embedding model."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from featurecache.errors import FeatureCacheError, UsageError
from featurecache.inputs import TextInput
from featurecache.types import Json
from student.export.base import (
    HEADS_FILE,
    USAGE_HEADS,
    Exported,
    check_agreement,
    head_weights,
    outputs_of,
    write_weights,
)
from student.models.bert import BertBackbone, quiet
from student.models.student import Student

__all__ = ["export_transformers"]

_TOLERANCE = 1e-5
_TRIALS = (
    "A fixed text: naïve façades, 12,345 µm² — 東京, “quotes”, e\u0301 and\ttabs; UPPER lower.",
    " leading and  doubled spaces ",
    "x",
    "one text that is longer than any student reads: " + "word " * 600,
)

_USAGE = """\
import torch
from transformers import AutoModel, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(".")
model = AutoModel.from_pretrained(".").eval()
texts = ["one text", "and another"]
batch = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
with torch.inference_mode():
    hidden = model(**batch).last_hidden_state
mask = batch["attention_mask"].unsqueeze(-1)
features = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)
"""


def export_transformers(
    student: Student, folder: Path, *, facts: Json, class_names: Mapping[str, Sequence[str]]
) -> Exported:
    """Configuration, weights, tokenizer, the pooling as sentence-transformers states it, heads; see `Exporter`."""
    backbone = student.backbone
    if not isinstance(backbone, BertBackbone):
        hint = "write --to timm, safetensors or onnx"
        raise UsageError(f"transformers has no {backbone.name}: it is a timm model", hint=hint)
    pad = _padding_token(backbone.input)
    network: Any = backbone.network
    network.config.architectures = ["BertModel"]
    network.config.save_pretrained(folder)
    write_weights(folder / "model.safetensors", network.state_dict())
    write_weights(folder / HEADS_FILE, head_weights(student, student.widths))
    (folder / "tokenizer.json").write_text(backbone.input.tokenizer.to_str(), encoding="utf-8")
    for name, value in _declared(backbone, pad).items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    found = _run(folder, is_padded=pad is not None)
    expected = [_expected(student, backbone.input, text) for text in _TRIALS]
    for text, (ids, _), (own, _) in zip(_TRIALS, found, expected, strict=True):
        if ids != own:
            raise FeatureCacheError(f"transformers makes other tokens of {text[:40]!r} than the student reads")
    features = [{"features": torch.stack([features for _, features in each])} for each in (found, expected)]
    no_padding = "its tokenizer has no token that could pad: give it one text at a time, without `padding=True`"
    return Exported(
        usage=(_USAGE if pad else _alone(_USAGE)) + (USAGE_HEADS if student.widths else ""),
        largest_difference=check_agreement(*features, tolerance=_TOLERANCE),
        heads=tuple(student.widths),
        notes=("`AutoModel` adds a pooler of random weights; nothing here reads it", *(() if pad else (no_padding,))),
    )


def _padding_token(input: TextInput) -> str | None:
    """A token that the tokenizer treats as special already, since making another one so would change the tokens."""
    tokenizer = input.tokenizer
    special = {number: token.content for number, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    first = next(iter(special.values()), None)
    return special.get(input.padding_id, first)


def _declared(backbone: BertBackbone, pad: str | None) -> dict[str, Json]:
    """Files of JSON: what the tokenizer does besides `tokenizer.json`, and what becomes of the last layer."""
    length = backbone.input.max_length
    pooling = {name: name == "mean_tokens" for name in ("cls_token", "mean_tokens", "max_tokens")}
    return {
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",  # those with a name of their own make tokens of their own
            "model_max_length": length,
            "model_input_names": ["input_ids", "attention_mask"],
            "padding_side": "right",
            "truncation_side": "right",
            "clean_up_tokenization_spaces": False,
            **({"pad_token": pad} if pad else {}),
        },
        "sentence_bert_config.json": {"max_seq_length": length, "do_lower_case": False},
        "modules.json": [
            {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
            {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        ],
        "1_Pooling/config.json": {
            "word_embedding_dimension": backbone.features,
            **{f"pooling_mode_{name}": chosen for name, chosen in pooling.items()},
        },
    }


def _run(folder: Path, *, is_padded: bool) -> list[tuple[list[int], Tensor]]:
    """Token ids and pooled features of the trial texts, as `_USAGE` makes them."""
    try:
        with quiet():
            tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
            model: Any = transformers.AutoModel.from_pretrained(folder).eval()
        groups = [list(_TRIALS)] if is_padded else [[text] for text in _TRIALS]
        found: list[tuple[list[int], Tensor]] = []
        for texts in groups:
            batch = tokenizer(texts, padding=is_padded, truncation=True, return_tensors="pt")
            with torch.inference_mode():
                hidden = model(**batch).last_hidden_state
            mask = batch["attention_mask"]
            pooled = (hidden * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
            ids = [row[real.bool()].tolist() for row, real in zip(batch["input_ids"], mask, strict=True)]
            found += zip(ids, pooled, strict=True)
    except Exception as error:  # transformers and tokenizers raise nothing more exact
        raise FeatureCacheError(f"transformers cannot use what was exported: {error}") from error
    return found


def _expected(student: Student, input: TextInput, text: str) -> tuple[list[int], Tensor]:
    ids = input.shortened(input.read(text))
    return ids, outputs_of(student, input.collate([ids]))["features"][0]


def _alone(usage: str) -> str:
    return usage.replace('["one text", "and another"]', '["one text"]').replace("padding=True, ", "")
