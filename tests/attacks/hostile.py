"""Caches that somebody has made to do harm, each from the same good one, and what has to happen to their readers."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from featurecache.augment import TokenAugmentation
from featurecache.errors import FeatureCacheError
from featurecache.store.layout import REASON, VALID, EncodedOutput, PartSpec
from featurecache.store.objects import LocalObjects
from featurecache.store.part_reader import PartReader
from featurecache.store.parts import read_asset, read_part
from featurecache.store.reader import open_cache
from featurecache.store.seals import seal
from featurecache.store.writer import CacheWriter, create_cache
from featurecache.types import ArraySpec, OutputSpec
from tests.attacks.reading import described, findings, read_plainly
from tests.store.small_parts import rows_identity, signed, teacher_part, write_part, write_rows

ROWS, DIM, CLASSES = 10, 4, 2
EMBEDDING = "train/vit/embedding"
RECORD = "train/vit/_commits/00000-0000000.json"
MEGABYTE = 2**20
TOKENS = 260
MASK = TokenAugmentation(mask_id=259, vocabulary=TOKENS, special_ids=(256, 257, 258, 259), max_length=8, share=0.3)
EXIT_CODES = (2, 3, 5)
"""No cache there, rows missing, damaged: what a reader may say of a hostile cache."""


@dataclass(frozen=True)
class Attack:
    """One hostile cache."""

    name: str
    build: Callable[[Path], object]
    """Turns a good cache into it."""
    key: str
    """What `verify` must name, and so must the reader where it refuses."""
    says: str = ""
    """What the reader says instead."""
    is_read: bool = False
    """Whether a reader gives the right values all the same, for it never looks there."""


def write_good(root: Path) -> None:
    """Ten rows, a teacher's embedding with a tokenizer beside it, a probe, tokens, two parts of views of which the
    teacher has seen all, a seal; no torch is needed."""
    objects = create_cache(root, source={"data": "made up"})
    write_rows(objects, rows=ROWS)
    teacher = teacher_part(ROWS, dim=DIM)
    CacheWriter(objects, teacher, assets={"tokenizer.json": b"{}"})
    write_part(objects, teacher)
    write_probe(objects, head_of(np.ones((CLASSES, DIM), "<f4"), np.zeros(CLASSES, "<f4")))
    seen = replace(teacher, name="vit.v1", views=(1, 4), identity={**teacher.identity, "views": [1, 4]}, assets={})
    write_part(objects, seen)
    write_tokens(objects)
    for views in ((1, 3), (3, 4)):
        write_views(objects, views)
    seal(objects)
    for path in root.rglob("*"):
        if path.is_file():
            path.chmod(0o644)


def write_tokens(objects: LocalObjects) -> None:
    """The part "inputs": three tokens of each text."""
    what = {"kind": "text", "tokenizer_sha256": "0" * 64, "max_length": MASK.max_length}
    part = PartSpec(
        name="inputs",
        kind="inputs",
        split="train",
        rows=ROWS,
        identity={"kind": "inputs", "data": rows_identity(ROWS), "input": what},
        arrays=(
            ArraySpec("tokens", "uint16", longest=MASK.max_length),
            ArraySpec("offsets", "int64", (2,), ("bound",)),
            VALID,
            REASON,
            ArraySpec("input_hash", "uint64"),
        ),
        facts={"input": what, "proof": "of a text"},
    )
    at = np.arange(0, 3 * ROWS, 3)
    values = {
        "tokens": np.arange(3 * ROWS).astype(np.uint16),
        "offsets": np.stack([at, at + 3], axis=1),
        "valid": np.ones(ROWS, np.uint8),
        "reason": np.zeros(ROWS, np.uint8),
        "input_hash": np.zeros(ROWS, np.uint64),
    }
    CacheWriter(objects, part).write(part.shard(0, 0), values)


def write_views(objects: LocalObjects, views: tuple[int, int]) -> None:
    """A part of views [first, stop), as drawn."""
    part = PartSpec(
        name=f"views.{views[0]}",
        kind="views",
        split="train",
        rows=ROWS,
        views=views,
        identity={"kind": "views", "data": rows_identity(ROWS), "views": list(views)},
        arrays=(ArraySpec("view", "float32", (len(MASK.parameters),), ("parameter",)),),
        facts={"augmentation": MASK.to_json(), "seed": 0, "proof": MASK.proof()},
    )
    keys, tokens = [f"key {row}" for row in range(ROWS)], [np.arange(3)] * ROWS
    writer = CacheWriter(objects, part)
    for shard in writer.pending():
        writer.write(shard, {"view": MASK.draw(keys, tokens, view=shard.view, seed=0)})


def forge(root: Path, name: str, make: Callable[[PartSpec, dict], PartSpec], *, split: str = "train") -> None:
    """A part of one shard in each view as somebody else would write it: with all that belongs to it, and a seal.

    `make` gives another part, and changes its values, array name -> (views, rows, *shape), or (1, elements) where
    ragged; further views that it has stay without a shard.
    """
    objects = LocalObjects(root)
    part = read_part(objects, f"{split}/{name}")
    reader, views = PartReader(objects, part), range(*part.views or (0, 1))
    values: dict[str, np.ndarray] = {}
    for array in part.arrays:
        if array.longest:
            offsets = reader.whole("offsets" if array.name == "tokens" else "key_offsets")
            values[array.name] = np.concatenate(reader.elements(array.name, offsets))[None]
        else:
            values[array.name] = np.stack([reader.whole(array.name, view=view) for view in views])
    assets = {asset: read_asset(objects, part, asset) for asset in part.assets}
    forged = make(part, values)
    shutil.rmtree(root / part.prefix)
    writer = CacheWriter(objects, forged, assets=assets)
    for slot in range(min(map(len, values.values()))):
        shard = forged.shard((forged.views or (0, 1))[0] + slot, 0)
        writer.write(shard, {array.name: values[array.name][slot] for array in forged.arrays})
    reseal(root)


def reseal(root: Path) -> None:
    """A seal over what is there now, as if nothing had been there before; shards may be missing."""
    shutil.rmtree(root / "seals")
    seal(LocalObjects(root))


def write_probe(objects: LocalObjects, head: bytes) -> None:
    part = PartSpec(
        name="probe",
        kind="probe",
        split="train",
        rows=ROWS,
        identity={"kind": "probe", "teacher_id": "id-one", "input": "embedding"},
        arrays=(ArraySpec("labelled", "uint8"),),
        outputs=(EncodedOutput(OutputSpec("logits", (CLASSES,)), "head"),),
        facts={"teacher_id": "id-one", "input": "embedding", "order": 0},
    )
    writer = CacheWriter(objects, part, assets={"head.safetensors": head})
    for shard in writer.pending():
        writer.write(shard, {"labelled": np.ones(ROWS, np.uint8)})


def head_of(weight: np.ndarray, bias: np.ndarray) -> bytes:
    """A safetensors file, by hand."""
    size = weight.nbytes
    tensors = {
        "weight": {"dtype": "F32", "shape": list(weight.shape), "data_offsets": [0, size]},
        "bias": {"dtype": "F32", "shape": list(bias.shape), "data_offsets": [size, size + bias.nbytes]},
    }
    header = json.dumps(tensors).encode()
    return len(header).to_bytes(8, "little") + header + weight.tobytes() + bias.tobytes()


def read_all(root: Path) -> dict[str, bytes]:
    """The same, and every output decoded."""
    found = read_plainly(root)
    reader = open_cache(root).split("train")
    for view in range(max(reader.views(), 1)):
        for name, tensor in reader.read(np.arange(ROWS), view=view, outputs=["embedding", "logits"]).items():
            found[f"output {name} {view}"] = tensor.numpy().tobytes()
    inputs, every = reader.stored_inputs(), np.arange(ROWS)
    if inputs is not None:
        found["tokens"] = repr([*inputs.reasons(every), *inputs.tokens(every, below=TOKENS)]).encode()
    return found


@cache
def right_values(good: Path) -> dict[str, bytes]:
    """What the good cache gives."""
    return read_all(good)


def write(root: Path, key: str, value: object) -> None:
    """Put bytes, or JSON with the right hash of itself, in a place, whatever stands there."""
    path = root / key
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(value if isinstance(value, bytes) else signed(value))


def value_of(root: Path, key: str) -> dict:
    return json.loads((root / key).read_bytes())


def change(root: Path, key: str, *path: str | int, to: object) -> None:
    """Another value in a JSON file, with the hashes in it put right."""
    value = value_of(root, key)
    inner = value
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = to
    write(root, key, value)


def check(attack: Attack, good: Path, root: Path) -> None:
    """The reader refuses, naming the object, or gives the right values; `verify` names the object."""
    shutil.copytree(good, root)
    attack.build(root)
    if attack.is_read:
        assert read_all(root) == right_values(good)
    else:
        with pytest.raises(FeatureCacheError) as refused:
            read_all(root)
        folder = attack.key.rpartition("/")[0] or attack.key
        assert (attack.says or folder) in refused.value.message, refused.value
        assert refused.value.exit_code in EXIT_CODES
    assert all(error.exit_code in EXIT_CODES for error in described(root))
    told = findings(root)
    assert any(attack.key in str(finding) for finding in told), told
