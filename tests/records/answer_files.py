"""Files of what a teacher said, in every form that is read."""

import csv
import gzip
import json
from pathlib import Path

import numpy as np


def chances(records: int, classes: int, seed: int = 0) -> np.ndarray:
    """float64 (records, classes): probabilities, some of them almost or exactly 0."""
    found = np.random.default_rng(seed).dirichlet(np.full(classes, 0.3), records)
    found[0] = np.eye(classes)[0]
    return found / found.sum(axis=1, keepdims=True)


def write_jsonl(path: Path, records: list[dict]) -> Path:
    text = "".join(json.dumps(record) + "\n" for record in records)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def write_csv(path: Path, records: list[dict]) -> Path:
    with gzip.open(path, "wt", newline="") if path.suffix == ".gz" else path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(records[0]))
        writer.writeheader()
        writer.writerows(records)
    return path


def write_parquet(path: Path, records: list[dict]) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(records), path)
    return path


def write(path: Path, records: list[dict]) -> Path:
    kind = path.name.removesuffix(".gz").rpartition(".")[2]
    return {"jsonl": write_jsonl, "csv": write_csv, "parquet": write_parquet}[kind](path, records)
