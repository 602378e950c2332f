"""Peak memory of an extraction at two sizes, a factor of ten apart: it must not grow with the number of rows.

    python benchmarks/memory.py OUT [--rows 20000]

Writes tars of small PNG images and .jsonl files of short texts at both sizes, extracts each with a random projection in
a process of its own, and reads that process's peak (VmHWM; workers apart). `growth` is the larger size's peak over
the smaller one's, the worse of images and texts.
"""

import argparse
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
from measuring import finish, show
from PIL import Image

PROGRAM = """
import json, sys
from pipelines.events import finish
from pipelines.extract import extract_cache
finish(extract_cache(teacher="random", data=sys.argv[1], out=sys.argv[2], workers=0, device="cpu"))
lines = open("/proc/self/status").read().splitlines()
print(json.dumps(int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024))
"""


def main() -> None:
    """Make the data, run the four extractions, print their peaks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--rows", type=int, default=20_000, help="of the smaller size")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    table, growth = [], {}
    for kind, write in (("images", write_images), ("texts", write_texts)):
        peaks = []
        for rows in (given.rows, 10 * given.rows):
            data = given.out / f"{kind}-{rows}{'.tar' if kind == 'images' else '.jsonl'}"
            if not data.exists():
                write(data, rows)
            peaks.append(peak(data, given.out / f"cache-{kind}-{rows}"))
        growth[kind] = peaks[1] / peaks[0]
        per_row = (peaks[1] - peaks[0]) * 2**20 / (9 * given.rows)
        table.append((kind, f"{peaks[0]:,.0f}", f"{peaks[1]:,.0f}", f"{growth[kind]:.3f}", f"{per_row:.0f}"))
    header = ("", f"MiB at {given.rows:,}", f"MiB at {10 * given.rows:,}", "growth", "bytes a row")
    show(header, table)
    finish(growth=max(growth.values()), **{f"growth_{kind}": value for kind, value in growth.items()})


def peak(data: Path, out: Path) -> float:
    """Peak resident memory in MiB of an extraction of this data."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PROGRAM, str(data), str(out)]
    shutil.rmtree(out, ignore_errors=True)
    found = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE)
    value: float = json.loads(found.stdout)
    return value


def write_images(path: Path, rows: int) -> None:
    """A tar of PNG images of 32 pixels with labels, named as webdataset names them."""
    draw = np.random.default_rng(0)
    with tarfile.open(path, "w") as tar:
        for number in range(rows):
            file = io.BytesIO()
            Image.fromarray(draw.integers(0, 256, (32, 32, 3), np.uint8)).save(file, "png", compress_level=1)
            for extension, data in (("png", file.getvalue()), ("cls", str(number % 10).encode())):
                member = tarfile.TarInfo(f"{number:08d}.{extension}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def write_texts(path: Path, rows: int) -> None:
    """Different short texts, one a line."""
    with path.open("w", encoding="utf-8") as file:
        for number in range(rows):
            file.write(json.dumps({"text": f"sample {number} of a corpus of short lines", "label": number % 10}) + "\n")


if __name__ == "__main__":
    main()
