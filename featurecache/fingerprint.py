"""Hashes that say whether two things are the same: canonical JSON, sample content, data sets, weights."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from featurecache.types import Json

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "canonical_json",
    "content_hash",
    "hash_json",
    "hash_pixels",
    "hash_rows",
    "hash_tensors",
    "hash_unit",
    "key_hash",
]


def canonical_json(value: Json) -> bytes:
    """UTF-8 JSON with sorted keys and no white space: equal values give equal bytes. NaN is refused."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def hash_json(value: Json) -> str:
    """SHA-256 of the canonical JSON, 64 hexadecimal digits."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def content_hash(encoded: bytes) -> int:
    """The first 64 bits of the SHA-256 of a sample's encoded bytes, little-endian."""
    return int.from_bytes(hashlib.sha256(encoded).digest()[:8], "little")


def hash_pixels(data: "np.ndarray | list[int]") -> int:
    """64 bits over what a network is given: a uint8 image with its shape, or token ids (as int32)."""
    array = np.ascontiguousarray(data, dtype="<i4" if isinstance(data, list) else None)
    head = hashlib.sha256(repr((array.dtype.str, array.shape)).encode())
    head.update(array.data)
    return int.from_bytes(head.digest()[:8], "little")


def key_hash(key: str) -> bytes:
    """The first 128 bits of the SHA-256 of a sample's key (16 bytes)."""
    return hashlib.sha256(key.encode()).digest()[:16]


def hash_unit(*words: object) -> float:
    """A number in [0, 1) that depends on the words alone: the same on every machine, in any order of calls."""
    digest = hashlib.sha256("/".join(map(str, words)).encode()).digest()
    return int.from_bytes(digest[:8], "little") / 2**64


def hash_rows(keys: Iterable[str], sizes: Iterable[int]) -> str:
    """A data set's fingerprint: SHA-256 over its (key, byte size) pairs in order, never over paths, times or labels."""
    digest = hashlib.sha256()
    for key, size in zip(keys, sizes, strict=True):
        encoded = key.encode()
        digest.update(len(encoded).to_bytes(8, "little") + encoded + int(size).to_bytes(8, "little"))
    return digest.hexdigest()


def hash_tensors(tensors: "Mapping[str, Tensor]") -> str:
    """SHA-256 over names, dtypes, shapes and bytes of tensors, in name order: the same for any file they came from."""
    import torch

    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
