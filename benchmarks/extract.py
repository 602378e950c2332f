"""Extraction against the same loader and forward pass that write nothing: decoding and writing must hide behind both.

    python benchmarks/extract.py OUT [--rows 3072] [--repetitions 5] [--device cpu] [--amp float32]

Images: the repository's glyphs, over and over, through a ResNet-18 of random weights at 96 pixels (a ViT-B at 224 on a
GPU). Texts:
package descriptions through all-MiniLM-L6-v2. Everything runs once a repetition, in turn. `ratio_to_forward` is the
rate of extraction over that of loader and forward; on a GPU there is also `ratio_to_preloaded`, over forward on batches
that are in memory already. Listing the rows and measuring the encodings come before, once, and are told apart.
"""

import argparse
import io
import shutil
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from measuring import finish, interleaved, median_ratio, show_rates
from safetensors.torch import save_file

from featurecache.extract import extract
from featurecache.forward import Forward, rows_at_once
from featurecache.loader import load
from featurecache.measure import measured_part
from featurecache.plan import plan_part
from featurecache.rows import list_rows
from featurecache.sources import Limited, Source, TarShards, open_data
from featurecache.store.writer import create_cache
from featurecache.teachers import load_teacher
from featurecache.teachers.base import Teacher
from pipelines.events import default_workers

DATA = Path(__file__).parents[1] / "examples" / "data"


def main() -> None:
    """Measure images and texts, print a table for each, and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="an empty folder for caches")
    parser.add_argument(
        "--rows", type=int, default=3072, help="several shards of 1,024, so that the last weighs little"
    )
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--amp", default="float32")
    parser.add_argument("--workers", type=int, default=None)
    given = parser.parse_args()
    ratios: dict[str, float] = {}
    for kind, teacher, data in (
        ("images", image_teacher(given.out, given.device), many_glyphs(given.out, given.rows)),
        ("texts", load_teacher("minilm", modality="text"), DATA / "debtext-train.jsonl.gz"),
    ):
        source = Limited(open_data(str(data))["train"], given.rows)
        rates = compare(kind, teacher, source, given)
        ratios[f"ratio_to_forward_{kind}"] = median_ratio(rates, "extraction", "loader and forward")
        ratios[f"ratio_to_preloaded_{kind}"] = median_ratio(rates, "extraction", "forward, preloaded")
    finish(**ratios, ratio_to_forward=min(value for name, value in ratios.items() if "forward" in name))


def image_teacher(out: Path, device: str) -> Teacher:
    """A timm network of random weights: they do not matter for speed."""
    name, size = ("vit_base_patch16_224", 224) if device.startswith("cuda") else ("resnet18", 96)
    weights = out / f"{name}.safetensors"
    if not weights.exists():
        out.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(0)
        save_file(timm.create_model(name).state_dict(), weights)
    return load_teacher(f"timm:{name}", modality="image", weights=str(weights), img_size=size)


def many_glyphs(out: Path, rows: int) -> Path:
    """A tar of so many of the glyphs, under new names."""
    path = out / f"glyphs-{rows}.tar"
    if not path.exists():
        glyphs = TarShards(DATA / "glyphs-train-000000.tar")
        with tarfile.open(path, "w") as tar:
            for number in range(rows):
                data = glyphs[number % len(glyphs)].encoded
                member = tarfile.TarInfo(f"{number:08d}.png")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return path


def compare(kind: str, teacher: Teacher, source: Source, given: argparse.Namespace) -> dict[str, list[float]]:
    """Rows per second of extraction, of loader and forward, of each alone."""
    workers = default_workers(given.device) if given.workers is None else given.workers
    forward = Forward(teacher, batch_size=given.batch_size, device=given.device, precision=given.amp)
    rows = rows_at_once(source.modality, given.batch_size)
    batches = [torch.arange(at, min(at + rows, len(source))).numpy() for at in range(0, len(source), rows)]
    loading: dict[str, Any] = {"workers": workers, "hash_inputs": True, "pin_memory": forward.device.type == "cuda"}
    preloaded = [batch.inputs for batch in load(source, teacher.input, batches, **loading)]
    part = plan_part(teacher, source, "train", precision=given.amp)
    began = time.perf_counter()
    part = measured_part(teacher, source, part, batch_size=given.batch_size, workers=workers, device=given.device)
    measuring = time.perf_counter() - began

    def run_forward(inputs: Any) -> None:
        for batch in inputs:
            for _, outputs in forward.outputs(batch):
                for values in outputs.values():
                    values.cpu()

    def run_extraction(path: Path) -> Callable[[], object]:
        shutil.rmtree(path, ignore_errors=True)
        objects = create_cache(path, source={})
        for _ in list_rows(source, objects, "train"):
            pass
        options = {"batch_size": given.batch_size, "workers": workers, "device": given.device}
        return lambda: [None for _ in extract(teacher, source, objects, part, **options)]

    def timed(work: Callable[[], object]) -> float:
        began = time.perf_counter()
        work()
        return len(source) / (time.perf_counter() - began)

    rates = interleaved(
        {
            "loader and forward": lambda: timed(
                lambda: run_forward(batch.inputs for batch in load(source, teacher.input, batches, **loading))
            ),
            "extraction": lambda: timed(run_extraction(given.out / f"cache-{kind}")),
            "forward, preloaded": lambda: timed(lambda: run_forward(preloaded)),
            "loader": lambda: timed(lambda: [None for _ in load(source, teacher.input, batches, **loading)]),
        },
        repetitions=given.repetitions,
    )
    print(f"{kind}: {teacher.name}, {len(source):,} rows, {workers} workers, {given.device}, {given.amp}")
    show_rates(rates, unit="rows/s", baseline="loader and forward")
    print(f"before that, once: encodings measured on a sample of the rows in {measuring:.1f} s\n")
    return rates


if __name__ == "__main__":
    main()
