"""A cache of a few kilobytes: rows, a teacher's part, a seal, then a probe and a second seal."""

import numpy as np
import safetensors.torch
import torch

from featurecache.store.layout import REASON, VALID, EncodedOutput, PartSpec
from featurecache.store.reader import open_cache
from featurecache.store.seals import seal
from featurecache.store.verify import Finding, verify
from featurecache.store.writer import CacheWriter, create_cache
from featurecache.types import ArraySpec, OutputSpec
from tests.store.small_parts import teacher_part, write_part, write_rows

ROWS, DIM, CLASSES = 3, 2, 2
EMBEDDING = "train/vit/embedding/c/0/0/0"


def write_tiny(root):
    """All of it, in files that may be written to. Shards have to be made small for it to be tiny."""
    found = create_cache(root, source={"data": "made up"})
    write_rows(found, rows=ROWS)
    arrays = (ArraySpec("embedding", "float16", (DIM,), ("feature",)), VALID, REASON)
    write_part(found, teacher_part(ROWS, arrays=arrays, dim=DIM))
    seal(found)
    write_probe(found)
    seal(found)
    for path in found.root.rglob("*"):
        if path.is_file():
            path.chmod(0o644)
    return found


def write_probe(objects):
    head = {"weight": torch.tensor([[1.0, 2.0], [3.0, 4.0]]), "bias": torch.tensor([0.5, -0.5])}
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
    writer = CacheWriter(objects, part, assets={"head.safetensors": safetensors.torch.save(head)})
    for shard in writer.pending():
        writer.write(shard, {"labelled": np.array([1, 0, 1], np.uint8)})


def files_of(objects):
    return sorted(str(path.relative_to(objects.root)) for path in objects.root.rglob("*") if path.is_file())


def problems(objects, **options):
    return [event for event in verify(objects, **options) if isinstance(event, Finding)]


def everything(root):
    """All that a reader gives, as bytes, from a cache opened anew."""
    cache = open_cache(root)
    reader = cache.split("train")
    found = [cache.seal.digest.encode(), "".join(reader.keys).encode(), reader.labels.tobytes()]
    found += [reader.content_hashes.tobytes(), reader.valid().tobytes(), reader.reasons("embedding").tobytes()]
    found += [tensor.numpy().tobytes() for tensor in reader.read(np.arange(ROWS)).values()]
    return [*found, reader.labelled("logits").tobytes(), repr(cache.source).encode()]
