"""Reading and verifying a cache with as little as possible: no torch, no test tools.

As a program, `python -m tests.attacks.reading` takes the path of a cache from each line of its input, and answers each
with a line of JSON: who refused it, how long that took, and what the process has used and been seen doing so far.
"""

import json
import resource
import sys
import time
from pathlib import Path

import numpy as np

from featurecache.errors import FeatureCacheError
from featurecache.store.objects import LocalObjects
from featurecache.store.part_reader import PartReader
from featurecache.store.reader import open_cache
from featurecache.store.verify import Finding, verify
from pipelines.describe import describe_cache, describe_progress

FORBIDDEN = (
    "pickle.find_class",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "subprocess.Popen",
    "socket.connect",
    "exec",
)
"""Audit events that reading a cache has no reason for, once everything is imported."""


def read_plainly(root: Path) -> dict[str, bytes]:
    """All that a reader gives without torch, by name."""
    opened = open_cache(root)
    reader = opened.split("train")
    found = {
        "keys": repr(reader.keys).encode(),
        "labels": reader.labels.tobytes(),
        "contents": reader.content_hashes.tobytes(),
        "hashes": reader.rows_of(reader.keys).tobytes(),
        "valid": reader.valid(["embedding"]).tobytes(),
        "reasons": reader.reasons("embedding").tobytes(),
        "labelled": reader.labelled("logits").tobytes(),
    }
    for part in opened.parts("train"):
        found |= {f"asset {part.name} {name}": opened.asset(part, name) for name in part.assets}
        plain, first = [array for array in part.arrays if not array.longest], (part.views or (0, 1))[0]
        reading = PartReader(opened.objects, part)
        found |= {f"{part.name} {a.name}": reading.whole(a.name, view=first).tobytes() for a in plain}
    views, rows = reader.stored_views, np.arange(len(reader))
    for view in range(reader.views() if views else 0):
        found[f"parameters {view}"] = views.parameters(rows, np.full(len(rows), view)).tobytes()
    return found


def findings(root: Path) -> list[Finding]:
    """What `verify` says."""
    return [event for event in verify(LocalObjects(root)) if isinstance(event, Finding)]


def described(root: Path) -> list[FeatureCacheError]:
    """What `info` and `status` say against a cache."""
    refused = []
    for describe in (describe_cache, describe_progress):
        try:
            json.dumps(describe(root))
        except FeatureCacheError as error:
            refused.append(error)
    return refused


def tried(root: Path) -> dict[str, object]:
    """One cache, read and verified."""
    began = time.perf_counter()
    try:
        read_plainly(root)
        refused = None
    except FeatureCacheError as error:
        refused = type(error).__name__
    read = time.perf_counter()
    told = len(findings(root))
    described(root)
    times = {"reader_seconds": round(read - began, 4), "verify_seconds": round(time.perf_counter() - read, 4)}
    return {"refused": refused, "findings": told, **times}


def peak_mib() -> float:
    """The most memory this process has had. On Linux, `ru_maxrss` would count what it was forked from."""
    status = Path("/proc/self/status")
    if status.exists():
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return round(int(fields["VmHWM"].split()[0]) / 1024, 1)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 1)


def main() -> None:
    """The first cache is a good one, so that whatever is imported late is imported before the watch begins."""
    seen: set[str] = set()
    tried(Path(sys.stdin.readline().rstrip("\n")))
    sys.addaudithook(lambda event, _: seen.add(event) if event in FORBIDDEN else None)
    for line in sys.stdin:
        facts = tried(Path(line.rstrip("\n")))
        loaded = sorted({"torch", "zarr"} & sys.modules.keys())
        print(json.dumps({**facts, "peak_mib": peak_mib(), "seen": sorted(seen), "loaded": loaded}), flush=True)


if __name__ == "__main__":
    main()
