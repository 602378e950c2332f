"""Small data sets on disk, the same wherever they are made."""

import io
import json
import struct
import tarfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

DATA = Path(__file__).parents[2] / "examples/data"


def picture(seed: int, format: str = "PNG", size: int = 8) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size + 2, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format)
    return stream.getvalue()


def paint_images(root: Path, names: Sequence[str]) -> Path:
    for seed, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.open(io.BytesIO(picture(seed))).save(path)
    return root


def write_tar(path: Path, members: Mapping[str, bytes]) -> Path:
    return write_members(path, [(tarfile.TarInfo(name), content) for name, content in members.items()])


def write_members(path: Path, members: Sequence[tuple[tarfile.TarInfo, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for info, content in members:
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def write_jsonl(path: Path, records: Sequence[object]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def huge_png(width: int, height: int) -> bytes:
    """A well-formed header that promises that many pixels, and hardly any data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(bytes(100)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


def write_parquet(
    path: Path, columns: Mapping[str, object], *, features: Mapping[str, object] | None = None, rows=None
):
    """A table; `features` are Hugging Face's notes on its columns, `rows` are those of a row group."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table(dict(columns))
    if features is not None:
        notes = json.dumps({"info": {"features": features}}).encode()
        table = table.replace_schema_metadata({b"huggingface": notes})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=rows, write_page_checksum=True, write_batch_size=20)
    return path
