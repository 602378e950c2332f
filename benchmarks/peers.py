"""Other libraries that keep rows of arrays, each in its plain public form; those that are not installed are left out.

Each function writes the rows into a folder, unless they stand there, and returns what reads them: a function of a plan
of random batches that returns thousands of rows per second. Libraries without random access read in their own shuffled
way, which is nearer to what they are made for.
"""

import importlib.util
import io
import itertools
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import numpy as np
from measuring import rate

__all__ = ["PEERS"]

Plan: TypeAlias = Callable[[int], list[np.ndarray]]
Reader: TypeAlias = Callable[[Plan], float]


def webdataset_rate(folder: Path, rows: np.ndarray) -> Reader | None:
    """Tars of .npy members, read in order through a shuffle buffer of 5,000."""
    if not importlib.util.find_spec("webdataset"):
        return None
    import webdataset

    per_tar = 32_768
    for number, start in enumerate(range(0, len(rows), per_tar)):
        path = folder / f"{number:06d}.tar"
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            _write_tar(path, rows, range(start, min(start + per_tar, len(rows))))
    shards = sorted(map(str, folder.glob("*.tar")))

    def read(plan: Plan) -> float:
        data = webdataset.WebDataset(shards, shardshuffle=False).shuffle(5000).decode().to_tuple("npy").batched(1024)
        batches = iter(data)
        next(batches)  # fills the buffer
        return rate(8 * 1.024, lambda: list(itertools.islice(batches, 8)))

    return read


def _write_tar(path: Path, rows: np.ndarray, chosen: range) -> None:
    partial = path.with_suffix(".partial")
    with tarfile.open(partial, "w") as tar:
        for row in chosen:
            data = io.BytesIO()
            np.save(data, rows[row])
            member = tarfile.TarInfo(f"{row:09d}.npy")
            member.size = data.tell()
            data.seek(0)
            tar.addfile(member, data)
    partial.replace(path)


def datasets_rate(folder: Path, rows: np.ndarray) -> Reader | None:
    """An Arrow data set on disk, indexed with lists of rows, as numpy arrays."""
    if not importlib.util.find_spec("datasets"):
        return None
    import datasets

    if not folder.exists():
        features = datasets.Features({"embedding": datasets.Sequence(datasets.Value("float16"), length=rows.shape[1])})
        parts = [
            datasets.Dataset.from_dict({"embedding": list(rows[at : at + 16_384])}, features=features)
            for at in range(0, len(rows), 16_384)
        ]
        datasets.concatenate_datasets(parts).save_to_disk(str(folder))
    data = datasets.load_from_disk(str(folder)).with_format("numpy")

    def read(plan: Plan) -> float:
        chosen = plan(10)
        return rate(len(chosen) * 1.024, lambda: [data[at]["embedding"] for at in chosen] and None)

    return read


def lance_rate(folder: Path, rows: np.ndarray) -> Reader | None:
    """A Lance data set of fixed-size lists, `take` of a list of rows."""
    if not importlib.util.find_spec("lance") or not importlib.util.find_spec("pyarrow"):
        return None
    import lance
    import pyarrow

    if not folder.exists():
        flat = pyarrow.array(np.asarray(rows).reshape(-1))
        table = pyarrow.table({"embedding": pyarrow.FixedSizeListArray.from_arrays(flat, rows.shape[1])})
        lance.write_dataset(table, str(folder))
    data = lance.dataset(str(folder))

    def read(plan: Plan) -> float:
        chosen = plan(5)
        return rate(len(chosen) * 1.024, lambda: [data.take(at.tolist()) for at in chosen] and None)

    return read


def litdata_rate(folder: Path, rows: np.ndarray) -> Reader | None:
    """A streaming data set of chunks, read in its own shuffled order without worker processes."""
    if not importlib.util.find_spec("litdata"):
        return None
    import litdata

    if not folder.exists():
        litdata.optimize(fn=rows.__getitem__, inputs=list(range(len(rows))), output_dir=str(folder), chunk_bytes="64MB")
    data = litdata.StreamingDataset(str(folder), shuffle=True)

    def read(plan: Plan) -> float:
        samples = iter(litdata.StreamingDataLoader(data, batch_size=1024, num_workers=0))
        next(samples)
        return rate(20 * 1.024, lambda: list(itertools.islice(samples, 20)))

    return read


PEERS: dict[str, Callable[[Path, np.ndarray], Reader | None]] = {
    "webdataset": webdataset_rate,
    "datasets": datasets_rate,
    "lance": lance_rate,
    "litdata": litdata_rate,
}
