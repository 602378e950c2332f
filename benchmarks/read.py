"""Random batches from a cache against one memory map of the same rows, other readers, and cold disks.

    python benchmarks/read.py FOLDER [--rows 1000000] [--repetitions 101] [--peers 262144]

FOLDER keeps what is written for the next time: 3 GB for a million rows of 768 float16, and other formats.
The baseline is `np.take(memmap, rows, 0, out, "clip")`: as fast as numpy gathers from one file. Of a cache and of that
file nothing is in memory at first, and both are then read once in order. Other readers are used in their plain public
form, where they are installed, on the first `--peers` rows. Prints tables, and as the last line one JSON object.
"""

import argparse
import functools
import os
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import zarr
from measuring import finish, interleaved, median_ratio, rate, show, show_rates
from peers import PEERS

from featurecache.store.layout import REASON, VALID, EncodedOutput, PartSpec
from featurecache.store.reader import CacheReader, open_cache
from featurecache.store.writer import CacheWriter, create_cache
from featurecache.types import ArraySpec, OutputSpec
from student.order import BLOCK, GROUP, block_order

WIDTH = 768
PART = "random"


def main() -> None:
    """Write what is missing, then measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--repetitions", type=int, default=101)
    parser.add_argument("--turn-rows", type=int, default=20_480, help="rows that each reads in a repetition")
    parser.add_argument("--peers", type=int, default=262_144, help="rows of other formats; 0 to leave them out")
    parser.add_argument("--cold-rows", type=int, default=65_536, help="rows of a cold measurement; 0 for none")
    given = parser.parse_args()
    folder = given.folder / f"{given.rows}"
    make_cache(folder / "cache", given.rows)
    make_file(folder / "rows.bin", given.rows)
    drop_from_memory(folder)
    flat = np.memmap(folder / "rows.bin", np.float16, "r", shape=(given.rows, WIDTH))
    found: dict[str, object] = {"rows": given.rows}
    for batch in (1024, 256):
        print(f"batches of {batch:,} random rows, in memory")
        rates = interleaved(contestants(folder, flat, batch, given.turn_rows), repetitions=given.repetitions)
        show_rates(rates, unit="1,000 rows/s", baseline="memmap")
        found[f"random_{batch}"] = {who: median_ratio(rates, who, "memmap") for who in rates if who != "memmap"}
        if batch == 1024:
            found["ratio_to_memmap"] = median_ratio(rates, "featurecache", "memmap")
    if given.peers:
        found["peers"] = against_peers(folder / "peers", flat[: min(given.peers, given.rows)], given)
    if given.cold_rows:
        del flat  # the system keeps what is mapped
        found["cold_rows_per_second"] = cold(folder, given)
    finish(**found)


def make_cache(path: Path, rows: int) -> None:
    """A split of one teacher with random float16 embeddings; taken as it is if it stands and is whole."""
    objects = create_cache(path, source={"data": "random"})
    data = {"kind": "rows", "fingerprint": "random", "rows": rows}
    listed = PartSpec(
        name="rows", kind="rows", split="train", rows=rows, identity=data, arrays=(ArraySpec("label", "int32"),),
        facts={"modality": "text", "class_names": []},
    )  # fmt: skip
    part = PartSpec(
        name=PART, kind="teacher", split="train", rows=rows, identity={"kind": "teacher", "data": data}, views=(0, 1),
        arrays=(ArraySpec("embedding", "float16", (WIDTH,), ("feature",)), VALID, REASON),
        outputs=(EncodedOutput(OutputSpec("embedding", (WIDTH,)), "float16"),),
        facts={"teacher": PART, "teacher_id": PART, "input": {}},
    )  # fmt: skip
    write_shards(CacheWriter(objects, listed), lambda start, stop: {"label": np.zeros(stop - start, np.int32)})
    write_shards(
        CacheWriter(objects, part),
        lambda start, stop: {
            "embedding": values(start, stop),
            "valid": np.ones(stop - start, np.uint8),
            "reason": np.zeros(stop - start, np.uint8),
        },
    )


def write_shards(writer: CacheWriter, rows: Callable[[int, int], dict[str, np.ndarray]]) -> None:
    """Every shard that is not committed yet."""
    for shard in writer.pending():
        writer.write(shard, rows(shard.start, shard.stop))


def values(start: int, stop: int) -> np.ndarray:
    """float16 (rows, WIDTH): finite and random, a function of the row range."""
    bits = np.random.default_rng((start, stop)).integers(0, 0x7C00, (stop - start, WIDTH), dtype=np.uint16)
    return bits.view(np.float16)


def make_file(path: Path, rows: int) -> None:
    """The same rows in one plain file."""
    cache = open_cache(path.parent / "cache").split(trust=True)
    if not path.exists():
        partial = path.with_suffix(".partial")
        with partial.open("wb") as file:
            for at in range(0, rows, 8192):
                taken = embeddings(cache, np.arange(at, min(at + 8192, rows)))
                taken.tofile(file)
        partial.replace(path)


def embeddings(reader: CacheReader, rows: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """Rows as they are stored: what `gather` calls for each batch."""
    part = reader.teachers[PART]
    return part.take(part.part.array("embedding"), rows, out=out)


def contestants(folder: Path, flat: np.ndarray, batch: int, rows: int) -> dict[str, Callable[[], float]]:
    """Who reads batches of random rows from memory, and how fast in thousands of rows per second."""
    draw = np.random.default_rng(0)
    out = np.empty((batch, WIDTH), np.float16)
    cache = open_cache(folder / "cache")
    checked, trusting = cache.split(), cache.split(trust=True)
    for at in range(0, len(flat), 8192):  # the first pass: pages are mapped, checksums are compared
        chosen = np.arange(at, min(at + 8192, len(flat)))
        assert np.array_equal(embeddings(checked, chosen).view(np.uint16), flat[chosen].view(np.uint16))
        embeddings(trusting, chosen)

    def measured(take: Callable[[np.ndarray], object]) -> Callable[[], float]:
        def run() -> float:
            plan = [draw.integers(0, len(flat), batch) for _ in range(rows // batch)]
            return rate(len(plan) * batch / 1000, lambda: [take(chosen) for chosen in plan] and None)

        return run

    def gathered() -> float:
        plan = [draw.integers(0, len(flat), batch) for _ in range(rows // batch)]
        return rate(len(plan) * batch / 1000, lambda: [None for _ in checked.gather(plan)])

    return {
        "memmap": measured(lambda chosen: np.take(flat, chosen, 0, out, "clip")),
        "memmap[rows]": measured(lambda chosen: flat[chosen]),
        "featurecache": measured(lambda chosen: embeddings(checked, chosen, out)),
        "featurecache, trust": measured(lambda chosen: embeddings(trusting, chosen, out)),
        "featurecache.gather, as float32": gathered,
    }


def against_peers(folder: Path, rows: np.ndarray, given: argparse.Namespace) -> dict[str, float]:
    """Ratios of other readers to the memory map, in random batches of 1,024 or, without those, shuffled their way."""
    draw = np.random.default_rng(1)
    out = np.empty((1024, WIDTH), np.float16)

    def plan(count: int) -> list[np.ndarray]:
        return [draw.integers(0, len(rows), 1024) for _ in range(count)]

    def base() -> float:
        chosen = plan(100)
        return rate(len(chosen) * 1.024, lambda: [np.take(rows, at, 0, out, "clip") for at in chosen] and None)

    readers: dict[str, Callable[[], float]] = {"memmap": base, "zarr-python": zarr_rate(folder.parent / "cache", plan)}
    for name, make in PEERS.items():
        batches = make(folder / name, rows)
        if batches is None:
            print(f"{name} is not installed")
            continue
        readers[name] = lambda batches=batches: batches(plan)
    print(f"other libraries, random batches of 1,024 of {len(rows):,} rows, in memory")
    rates = interleaved(readers, repetitions=min(given.repetitions, 5))
    show_rates(rates, unit="1,000 rows/s", baseline="memmap")
    return {name: median_ratio(rates, name, "memmap") for name in rates if name != "memmap"}


def zarr_rate(path: Path, plan: Callable[[int], list[np.ndarray]]) -> Callable[[], float]:
    """zarr-python on the same cache."""
    array = zarr.open_group(path, mode="r")[f"train/{PART}/embedding"]

    def run() -> float:
        (chosen,) = plan(1)
        return rate(1.024, lambda: array.oindex[0, chosen])  # type: ignore[union-attr]

    return run


def cold(folder: Path, given: argparse.Namespace) -> dict[str, float]:
    """Rows per second from the disk: median of three, of so many rows in batches of 256, nothing in memory at first."""
    ways = {
        "memmap, random rows": cold_memmap,
        "featurecache, trust, random rows": cold_trusting,
        "featurecache, random rows": cold_random,
        "featurecache, groups of blocks": cold_blocks,
        "featurecache, random rows, in memory": cold_random,
    }
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(3):
        for name, way in ways.items():
            if "in memory" not in name:
                drop_from_memory(folder)
            else:
                read_once(folder)
            found[name].append(rate(given.cold_rows, functools.partial(way, folder, given)))
    print(f"the first {given.cold_rows:,} rows that a reader takes, in batches of 256, from the disk or as said")
    medians = {name: statistics.median(rates) for name, rates in found.items()}
    show(("", "1,000 rows/s, median"), [(name, f"{value / 1000:,.4g}") for name, value in medians.items()])
    return medians


def cold_memmap(folder: Path, given: argparse.Namespace) -> None:
    """Random rows from the plain file."""
    flat = np.memmap(folder / "rows.bin", np.float16, "r", shape=(given.rows, WIDTH))
    for chosen in random_plan(given):
        flat[chosen]


def cold_trusting(folder: Path, given: argparse.Namespace) -> None:
    """Random rows from the cache, unchecked."""
    reader = open_cache(folder / "cache").split(trust=True)
    for chosen in random_plan(given):
        embeddings(reader, chosen)


def cold_random(folder: Path, given: argparse.Namespace) -> None:
    """Random rows from the cache: for the first row of each inner chunk, all its 512 KiB are read and checked."""
    reader = open_cache(folder / "cache").split()
    for chosen in random_plan(given):
        embeddings(reader, chosen)


def cold_blocks(folder: Path, given: argparse.Namespace) -> None:
    """Blocks mixed in groups, the next group fetched meanwhile, checked: how a student reads what exceeds memory."""
    reader = open_cache(folder / "cache").split()
    order, group = block_order(given.rows, seed=0, epoch=0), BLOCK * GROUP
    reader.will_need(order[:group])
    for at in range(0, min(given.cold_rows, given.rows), 256):
        if at % group == 0:
            reader.will_need(order[at + group :][:group])
        embeddings(reader, order[at : at + 256])


def random_plan(given: argparse.Namespace) -> Iterator[np.ndarray]:
    """Batches of random rows, as many as are wanted cold."""
    draw = np.random.default_rng(2)
    return (draw.integers(0, given.rows, 256) for _ in range(0, given.cold_rows, 256))


def read_once(folder: Path) -> None:
    """Have the system hold the cache in memory."""
    reader = open_cache(folder / "cache").split(trust=True)
    for at in range(0, len(reader), 8192):
        embeddings(reader, np.arange(at, min(at + 8192, len(reader))))


def drop_from_memory(folder: Path) -> None:
    """Have the system forget what it read; it keeps what somebody has mapped and touched."""
    for path in [*folder.glob("cache/**/c/**/*"), folder / "rows.bin"]:
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


if __name__ == "__main__":
    main()
