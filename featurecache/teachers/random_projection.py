"""A fixed random network: a real teacher that costs nothing, for tests, demos and timing."""

import json
from collections.abc import Sequence

import tokenizers
import torch
import torch.nn.functional as F
from torch import Tensor

from featurecache.fingerprint import hash_tensors
from featurecache.inputs import ImageInput, Inputs, TextInput
from featurecache.types import Json, Modality, OutputSpec

__all__ = ["RandomProjection", "byte_tokenizer_json"]

_PIXELS = 16
_BYTES = 257  # with [PAD], which also stands before the first byte
_BUCKETS = 4096
_MULTIPLIER = 40_503  # odd: neighbouring byte pairs fall into distant buckets


class RandomProjection:
    """ "embedding" (dim,): tanh of a random projection of pixels or byte pairs; "logits" (classes,) if asked for."""

    def __init__(self, modality: Modality = "image", *, dim: int = 64, classes: int = 0, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.name = f"random-{modality}"
        self.input: ImageInput | TextInput
        if modality == "image":
            self.input = ImageInput(size=_PIXELS, crop_pct=1.0, interpolation="bilinear")
            fan_in = 3 * _PIXELS**2
        else:
            self.input = TextInput(byte_tokenizer_json())
            fan_in = _BUCKETS
        self._weights = {"projection": _uniform(fan_in, dim, generator), "head": _uniform(dim, classes, generator)}
        logits = (OutputSpec("logits", (classes,)),) if classes else ()
        self.outputs = (OutputSpec("embedding", (dim,)), *logits)
        longest = self.input.max_length if isinstance(self.input, TextInput) else 0
        self.further = (OutputSpec("hidden.0", (dim,), longest=longest),) if longest else ()

    def __call__(self, batch: Inputs, further: Sequence[str] = ()) -> dict[str, Tensor]:
        """Images or tokens -> embedding float32 (batch, dim), logits float32 (batch, classes), and of texts if asked
        hidden.0 float32 (batch, tokens, dim): what each byte pair is projected to."""
        with torch.inference_mode():
            if isinstance(self.input, ImageInput):
                hidden, pairs = self._project_images(self.input.normalise(batch["images"])), None
            else:
                pairs = self._project_pairs(batch["ids"])
                hidden = _summed(pairs, batch["mask"])
            outputs = {"embedding": torch.tanh(hidden)}
            if len(self.outputs) > 1:
                outputs["logits"] = outputs["embedding"] @ self._weights["head"]
        return outputs if pairs is None else outputs | dict.fromkeys(further, pairs)

    def to(self, device: torch.device | str) -> "RandomProjection":
        """Move the matrices; returns itself."""
        self._weights = {name: weight.to(device) for name, weight in self._weights.items()}
        return self

    def identity(self) -> Json:
        """The modality and the hash of the matrices; the seed is in them."""
        return {
            "library": "random",
            "model": self.name,
            "config": {},
            "outputs": [spec.name for spec in self.outputs],
            "weights_sha256": hash_tensors(self._weights),
        }

    def _project_images(self, images: Tensor) -> Tensor:
        pixels = images.flatten(1)
        return pixels @ self._weights["projection"] / pixels.shape[1] ** 0.5

    def _project_pairs(self, ids: Tensor) -> Tensor:
        before = F.pad(ids[:, :-1], (1, 0), value=_BYTES - 1)
        buckets = (before * _BYTES + ids) * _MULTIPLIER % _BUCKETS
        return F.embedding(buckets, self._weights["projection"])


def _summed(pairs: Tensor, mask: Tensor) -> Tensor:
    weight = mask.unsqueeze(-1).float()
    return (pairs * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1).sqrt()


def byte_tokenizer_json() -> str:
    """A tokenizer.json that makes each UTF-8 byte a token (ids 0 to 255) and has [PAD] (256)."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: number for number, character in enumerate(alphabet)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens(["[PAD]"])
    return json.dumps(json.loads(tokenizer.to_str()), sort_keys=True)  # the library's own key order is not fixed


def _uniform(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    # variance 1 from uniform numbers: exact arithmetic, so the same bits on every machine
    return (torch.rand(rows, columns, generator=generator) * 2 - 1) * 3**0.5
