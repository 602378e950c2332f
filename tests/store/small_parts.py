"""Small parts written by CacheWriter, with the values they should hold."""

import hashlib
import json

import numpy as np
import safetensors.torch
import torch

from featurecache.fingerprint import content_hash, hash_rows, key_hash
from featurecache.store.layout import REASON, VALID, EncodedOutput, PartSpec
from featurecache.store.writer import CacheWriter
from featurecache.types import ArraySpec, OutputSpec


def keys_of(rows):
    """Keys of different lengths, some not ASCII."""
    return [f"{'ü' * (row % 3)}/{'x' * (row % 5)}{row}" for row in range(rows)]


def rows_identity(rows):
    return {"kind": "rows", "fingerprint": hash_rows(keys_of(rows), range(rows)), "rows": rows}


def signed(value):
    """JSON with the hash of itself, by what docs/format.md says; a value that has no such hash stays as it is."""
    if not isinstance(value, dict):
        return json.dumps(value).encode()
    content = {name: item for name, item in value.items() if name != "sha256"}
    try:
        digest = hashlib.sha256(_canonical(content)).hexdigest()
        return _canonical({**content, "sha256": digest})
    except ValueError:  # NaN, or half a surrogate pair
        return json.dumps(value).encode()


def _canonical(value):
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def write_rows(objects, split="train", rows=10, class_names=("a", "b", "c")):
    """The part "rows" of a split, laid out by hand."""
    keys = [key.encode() for key in keys_of(rows)]
    longest = max(map(len, keys))
    part = PartSpec(
        name="rows",
        kind="rows",
        split=split,
        rows=rows,
        identity=rows_identity(rows),
        arrays=(
            ArraySpec("key_hash", "uint8", (16,), ("byte",)),
            ArraySpec("key_text", "uint8", longest=longest),
            ArraySpec("key_offsets", "int64", (2,), ("bound",)),
            ArraySpec("label", "int32"),
            ArraySpec("content_hash", "uint64"),
        ),
        facts={"modality": "text", "class_names": list(class_names)},
    )
    writer = CacheWriter(objects, part)
    for shard in writer.pending():
        at, offsets = shard.index * part.rows_per_shard * longest, []
        for key in keys[shard.start : shard.stop]:
            offsets.append((at, at + len(key)))
            at += len(key)
        chosen = range(shard.start, shard.stop)
        writer.write(
            shard,
            {
                "key_hash": np.array([list(key_hash(keys[row].decode())) for row in chosen], np.uint8),
                "key_text": np.frombuffer(b"".join(keys[shard.start : shard.stop]), np.uint8),
                "key_offsets": np.array(offsets, np.int64),
                "label": np.array([row % 3 - 1 for row in chosen], np.int32),
                "content_hash": np.array([content_hash(keys[row]) for row in chosen], np.uint64),
            },
        )
    return part


def teacher_part(rows=10, *, name="vit", split="train", views=(0, 1), arrays=None, recipe="one", dim=4):
    """A teacher's part with a float16 embedding, or with other arrays."""
    arrays = arrays or (ArraySpec("embedding", "float16", (dim,), ("feature",)), VALID, REASON)
    return PartSpec(
        name=name,
        kind="teacher",
        split=split,
        rows=rows,
        identity={"kind": "teacher", "data": rows_identity(rows), "recipe": recipe, "precision": "float32"},
        arrays=arrays,
        views=views,
        outputs=(EncodedOutput(OutputSpec("embedding", (dim,)), "float16"),),
        facts={"teacher": name, "teacher_id": f"id-{recipe}", "input": {}},
    )


def values_of(part, shard, seed=0):
    """Random rows of a shard, a function of (seed, array, view, row range) alone."""
    rows = {}
    for number, array in enumerate(part.arrays):
        rng = np.random.default_rng((seed, number, shard.view, shard.index))
        shape = (shard.rows, *array.shape)
        if array.name == "valid":
            rows[array.name] = np.ones(shape, np.uint8)
        elif array.name == "reason":
            rows[array.name] = np.zeros(shape, np.uint8)
        elif array.dtype.startswith("float"):
            rows[array.name] = rng.normal(size=shape).astype(array.dtype)
        else:
            limits = np.iinfo(array.dtype)
            rows[array.name] = rng.integers(limits.min, limits.max, shape, dtype=array.dtype, endpoint=True)
    return rows


def write_part(objects, part, *, seed=0, skip=()):
    """Every shard of a part but some (view, index); the model: array name -> values (views, rows, *shape)."""
    views = range(*part.views) if part.views else range(1)
    model = {a.name: np.zeros((len(views), part.rows, *a.shape), a.dtype) for a in part.arrays}
    writer = CacheWriter(objects, part)
    for shard in writer.pending():
        if (shard.view, shard.index) in skip:
            continue
        rows = values_of(part, shard, seed)
        writer.write(shard, rows)
        for name, values in rows.items():
            model[name][shard.view - views[0], shard.start : shard.stop] = values
    return model


def add_probe(objects, name, order, *, split="train", teacher="id-one", weight=None, shape=(3,), rows=10):
    """A probe of three classes on the embedding; returns its (weight, bias)."""
    head = weight if weight is not None else torch.randn(3, 4, generator=torch.Generator().manual_seed(order))
    bias = torch.arange(float(len(head))) + order
    part = PartSpec(
        name=name,
        kind="probe",
        split=split,
        rows=rows,
        identity={"kind": "probe", "name": name},
        arrays=(ArraySpec("labelled", "uint8"),),
        outputs=(EncodedOutput(OutputSpec("logits", shape), "head"),),
        facts={"teacher_id": teacher, "input": "embedding", "order": order},
    )
    assets = {"head.safetensors": safetensors.torch.save({"weight": head, "bias": bias})}
    writer = CacheWriter(objects, part, assets=assets)
    for shard in writer.pending():
        writer.write(shard, {"labelled": np.ones(shard.rows, np.uint8)})
    return head.double().numpy(), bias.double().numpy()
