"""What must hold of every cache at every moment, worked out by hand from the bytes on disk."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

TIMES = ("created", "sealed", "uuid", "sha256", "previous")
"""Fields that no two runs have in common, and the hashes over them."""


def files_of(root: Path) -> dict[str, bytes]:
    """Every file of a cache that readers may look at, by its place."""
    paths = (path for path in root.rglob("*") if path.is_file())
    names = {str(path.relative_to(root)): path for path in paths}
    return {name: path.read_bytes() for name, path in names.items() if not name.startswith(("_tmp/", "_claims/"))}


def content_of(files: Mapping[str, bytes]) -> dict[str, object]:
    """The same for two caches that were made alike: bytes, but for times in cache.json, part.json and seals."""
    return {name: _without_times(name, data) for name, data in files.items()}


def _without_times(name: str, data: bytes) -> object:
    if name != "cache.json" and not name.startswith("seals/") and not name.endswith("part.json"):
        return data
    value = {field: item for field, item in json.loads(data).items() if field not in TIMES}
    value.pop("provenance", None)
    if "objects" in value:
        timed = ("cache.json", "part.json")
        value["objects"] = [entry for entry in value["objects"] if not entry["key"].endswith(timed)]
        value.pop("total_bytes", None)
    return value


def records_in(files: Mapping[str, bytes]) -> dict[str, dict]:
    """The commit records, by place. Fails for JSON that is torn."""
    return {name: json.loads(data) for name, data in files.items() if "/_commits/" in name}


def faults_in(files: Mapping[str, bytes]) -> list[str]:
    """What is wrong: torn JSON under its final name, and rows that are committed but are not there, or not these."""
    faults = []
    for name, data in files.items():
        if name.endswith(".json"):
            try:
                listed = json.loads(data).get("objects", [])
            except ValueError:
                faults.append(f"{name} is torn")
                continue
            for entry in listed:
                found = files.get(entry["key"])
                if found is None or len(found) != entry["bytes"] or _sha256(found) != entry["sha256"]:
                    faults.append(f"{name} lists {entry['key']}, and that is {'gone' if found is None else 'other'}")
    return faults


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
